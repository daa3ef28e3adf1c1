/** When a volume that has grown is grown on the node too, and what its claim says of it: kubelet's node_expander. Pure. */
import { rfc3339 } from '../../../runtime/host/clock.ts';
import { parseQuantity } from '../../apiserver/quantity.ts';
import type { PersistentVolume, PersistentVolumeClaim } from '../../apiserver/types.ts';

/** core/v1 PersistentVolumeClaim with the fields of its status that are newer than our types. */
export type Claim = PersistentVolumeClaim & {
  readonly status?: {
    readonly allocatedResources?: Readonly<Record<string, string>>;
    readonly allocatedResourceStatuses?: Readonly<Record<string, string>>;
  };
};

const notRequired = 'volume.kubernetes.io/node-expansion-not-required';
const resizeConditions = ['FileSystemResizePending', 'Resizing', 'ControllerResizeError', 'NodeResizeError'];

export interface Expansion {
  /** As the claim is to say it. */
  readonly size: string;
  readonly bytes: number;
  /** The claim's status is told how it goes; not where another node has done that (ReadWriteMany). */
  readonly told: boolean;
  /** The resize controller follows the steps (`allocatedResourceStatuses`). */
  readonly steps: boolean;
}

/**
 * What is to be done for the volume, whose size at this node was `knownBytes` when it was last looked at. Undefined: nothing.
 */
export function wantedExpansion(
  claim: Claim,
  volume: PersistentVolume,
  knownBytes: number | undefined,
): Expansion | undefined {
  const capacity = volume.spec?.capacity?.['storage'];
  if (capacity === undefined) return undefined;
  const { allocatedResources, allocatedResourceStatuses } = claim.status ?? {};
  const reported = parseQuantity(claim.status?.capacity?.['storage'] ?? '0');
  const state = allocatedResourceStatuses?.['storage'] ?? '';
  const steps = state !== '' || allocatedResources !== undefined;
  const size = (steps ? allocatedResources?.['storage'] : undefined) ?? capacity;
  const bytes = parseQuantity(size);
  if (reported >= bytes && state === '') {
    const elsewhere =
      knownBytes !== undefined &&
      bytes > knownBytes &&
      claim.spec?.accessModes?.includes('ReadWriteMany') === true &&
      claim.metadata?.annotations?.[notRequired] === undefined;
    return elsewhere ? { size, bytes, told: false, steps } : undefined;
  }
  if (reported >= parseQuantity(capacity) && reported >= bytes) return undefined;
  if (steps && state !== 'NodeResizePending' && state !== 'NodeResizeInProgress') return undefined;
  return { size, bytes, told: true, steps };
}

type Condition = NonNullable<NonNullable<PersistentVolumeClaim['status']>['conditions']>[number];

/** The merge patches of a claim's status. */
export const patches = {
  begun: ({ metadata }: Claim) => ({
    metadata: { resourceVersion: metadata?.resourceVersion },
    status: { allocatedResourceStatuses: { storage: 'NodeResizeInProgress' } },
  }),
  done: ({ status }: Claim, size: string) => ({
    status: {
      capacity: { storage: size },
      allocatedResourceStatuses: { storage: null },
      conditions: (status?.conditions ?? []).filter(({ type }) => !resizeConditions.includes(type)),
    },
  }),
  /** `infeasible`: it cannot be done at all, and the controller may go back. */
  failed: ({ status }: Claim, why: string, infeasible: boolean, nowMs: number) => {
    const condition = {
      type: 'NodeResizeError',
      status: 'True',
      lastTransitionTime: rfc3339(nowMs),
      message: `failed to expand pvc with ${why}`,
    } as unknown as Condition;
    const others = (status?.conditions ?? []).filter(({ type }) => type !== 'NodeResizeError');
    return {
      status: {
        conditions: [...others, condition],
        ...(infeasible ? { allocatedResourceStatuses: { storage: 'NodeResizeInfeasible' } } : {}),
      },
    };
  },
} as const;

/** gRPC's codes by which a driver says that it will never do it: InvalidArgument, NotFound, OutOfRange. */
export const isInfeasible = (status: unknown): boolean => status === 3 || status === 5 || status === 11;
