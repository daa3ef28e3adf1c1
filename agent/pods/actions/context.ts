/** What actions work with. */
import type { ImageService, RuntimeService } from '../../../runtime/api.ts';
import type { Cgroups } from '../../../runtime/host/cgroups.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { isError } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { ApiserverClient, EventRecorder, ObjectCache, Pod } from '../../apiserver/types.ts';
import type { ImageAccess } from '../../images/access.ts';
import type { ReadyVolume, VolumeManager } from '../../volumes/types.ts';
import type { PodMemory } from '../plan/memory.ts';
import type { DeadContainers } from '../plan/prune.ts';
import type { ProbeRoom } from '../prober.ts';
import type { KernelSettings } from '../resources/kernel_limits.ts';
import type { Turns } from '../resources/turns.ts';
import { ephemeralContainers, initContainers } from '../spec/pod.ts';
import type { CgroupSettings } from '../spec/qos.ts';
import type { SecuritySettings } from '../spec/security.ts';
import type { Stage } from '../timeline.ts';
import type { ObservedPod } from '../types.ts';
import type { Handlers } from './handlers.ts';
import type { UserIds } from './user_ids.ts';

/** What the pods room needs of the configuration. */
export interface PodsConfig {
  /** `/var/lib/kubelet`: pods' files are below `pods/<uid>`. */
  readonly kubeletDir: string;
  /** `/var/log/pods`. */
  readonly podLogsDir: string;
  /** `/var/log/containers`: links for log shippers. */
  readonly containerLogsDir: string;
  readonly clusterDns: readonly string[];
  readonly clusterDomain: string;
  /** The node's resolver configuration; empty for none. */
  readonly resolvConf: string;
  readonly cgroup: CgroupSettings;
  /** Absent: limits of swap and huge pages are the runtime's. */
  readonly kernel?: KernelSettings;
  readonly security: SecuritySettings;
  /** Sysctls that pods get unless they have others or share the namespace. */
  readonly defaultSysctls?: Readonly<Record<string, string>>;
  /** What statuses call the runtime: default `keelson`. */
  readonly runtimeName?: string;
  /** Longest CrashLoopBackOff; default 300,000. */
  readonly maxContainerRestartPeriodMs?: number;
  /** Default: the one before the newest is kept. */
  readonly dead?: DeadContainers;
}

/** What pods share and the room makes itself. */
export interface Made {
  readonly handlers: Handlers;
  readonly userIds: UserIds;
  readonly turns: Turns;
}

/** What all pods share. */
export interface Shared {
  readonly runtime: RuntimeService;
  readonly images: ImageService;
  readonly imageAccess: Pick<
    ImageAccess,
    'mustPull' | 'credentials' | 'pull' | 'forget' | 'pullAlwaysFallback'
  >;
  readonly volumes: VolumeManager;
  readonly cgroups?: Pick<Cgroups, 'ensure' | 'remove' | 'children'> &
    Partial<Pick<Cgroups, 'read' | 'version'>>;
  readonly client?: ApiserverClient;
  readonly objects: ObjectCache;
  readonly events: EventRecorder;
  readonly config: PodsConfig;
  /** Default: one for each pod. */
  readonly probes?: ProbeRoom;
  readonly nodeName: string;
  readonly hostIps: () => readonly string[];
  readonly allocatable: () => Readonly<Record<string, string>>;
  /** Of the node, in bytes. */
  readonly memoryCapacity: number;
  /** Bytes that a running container uses; undefined where that is not known. */
  readonly memoryUsage?: (containerId: string, signal: AbortSignal) => Promise<number | undefined>;
  readonly log: Logger;
  readonly clock: Clock;
}

/** One action's surroundings. */
export interface ActionContext extends Shared, Made {
  readonly pod: Pod;
  readonly observed: ObservedPod;
  readonly memory: PodMemory;
  readonly ready: ReadonlyMap<string, ReadyVolume>;
  /** Nothing but what the runtime and the disk tell is known of the pod: it is only to be removed. */
  readonly orphan: boolean;
  readonly signal: AbortSignal;
  readonly stage: (stage: Stage) => void;
  readonly setReady: (volumes: ReadonlyMap<string, ReadyVolume>) => void;
}

export type MemoryUpdate = (memory: PodMemory) => PodMemory;

/** An event about the pod, or about one of its containers. */
export function tell(
  context: Pick<ActionContext, 'events' | 'pod'>,
  container: string | undefined,
  type: 'Normal' | 'Warning',
  reason: string,
  message: string,
): void {
  const { pod } = context;
  const among = (list: readonly { name: string }[]) => list.some(({ name }) => name === container);
  const field = among(initContainers(pod))
    ? 'initContainers'
    : among(ephemeralContainers(pod))
      ? 'ephemeralContainers'
      : 'containers';
  context.events.event(
    {
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: pod.metadata,
      ...(container === undefined ? {} : { fieldPath: `spec.${field}{${container}}` }),
    },
    type,
    reason,
    message,
  );
}

/** The action is not wanted any more; false where only its own deadline ended it, which is a failure. */
export function interrupted({ signal }: Pick<ActionContext, 'signal'>): boolean {
  return signal.aborted && !isError(signal.reason, 'DEADLINE_EXCEEDED');
}

/** The pod's own folder. */
export function podFolder(config: PodsConfig, uid: string): string {
  return `${config.kubeletDir}/pods/${uid}`;
}
