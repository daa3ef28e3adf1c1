/**
 * What the cluster learns of a node's CSI drivers: the CSINode object, and the annotation and labels of the Node (kubelet's
 * nodeinfomanager). The scheduler counts volumes by it, and provisioners place them.
 */

import type { Clock } from '../../../runtime/host/clock.ts';
import { sleep } from '../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { keyedQueue } from '../../../runtime/host/keyed.ts';
import { apiStatus } from '../../apiserver/answers.ts';
import type { ApiserverClient, Node, ObjectMeta } from '../../apiserver/types.ts';
import type { Announcer, NodeInfo } from './drivers.ts';

export interface CsiNodeDriver {
  readonly name: string;
  readonly nodeID: string;
  readonly topologyKeys?: readonly string[];
  readonly allocatable?: { readonly count?: number };
}
export interface CsiNode {
  readonly apiVersion: 'storage.k8s.io/v1';
  readonly kind: 'CSINode';
  readonly metadata: ObjectMeta;
  readonly spec: { readonly drivers: readonly CsiNodeDriver[] };
}

const annotation = 'csi.volume.kubernetes.io/nodeid';
const path = '/apis/storage.k8s.io/v1/csinodes';
const mostVolumes = 2n ** 31n - 1n;
/** Attempts where somebody else changes the object at the same time, or there is no Node yet. */
const attempts = 6;
const firstWaitMs = 30;

/** The object for a node without drivers. Pure. */
export function emptyCsiNode(node: Node): CsiNode {
  const { name, uid } = node.metadata ?? {};
  return {
    apiVersion: 'storage.k8s.io/v1',
    kind: 'CSINode',
    metadata: { name, ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: name!, uid: uid! }] },
    spec: { drivers: [] },
  };
}

/** Whether the object is of this very Node, and not of one that had its name before. Pure. */
export function isOwned({ metadata }: CsiNode, node: Node): boolean {
  return (
    metadata.ownerReferences?.some(
      ({ kind, name, uid }) => kind === 'Node' && name === node.metadata?.name && uid === node.metadata?.uid,
    ) === true
  );
}

/** The object with the driver; the same object where it is there already. Pure. */
export function withDriver(object: CsiNode, name: string, info: NodeInfo): CsiNode {
  const count = info.maxVolumes > mostVolumes ? mostVolumes : info.maxVolumes;
  const driver: CsiNodeDriver = {
    name,
    nodeID: info.nodeId,
    topologyKeys: Object.keys(info.topology).sort(),
    ...(count > 0n ? { allocatable: { count: Number(count) } } : {}),
  };
  const before = object.spec.drivers.find((one) => one.name === name);
  const same =
    before?.nodeID === driver.nodeID &&
    before.allocatable?.count === driver.allocatable?.count &&
    [...(before.topologyKeys ?? [])].sort().join() === driver.topologyKeys?.join();
  if (same) return object;
  return {
    ...object,
    spec: { ...object.spec, drivers: [...object.spec.drivers.filter((one) => one !== before), driver] },
  };
}

/** The object without the driver; the same object where it is not there. Pure. */
export function withoutDriver(object: CsiNode, name: string): CsiNode {
  const drivers = object.spec.drivers.filter((one) => one.name !== name);
  return drivers.length === object.spec.drivers.length
    ? object
    : { ...object, spec: { ...object.spec, drivers } };
}

/**
 * The merge patch that makes the Node know the driver's id for it (`info`), or forget it; undefined where nothing is to be
 * done. Throws FAILED_PRECONDITION where a label says otherwise than the driver, or the annotation is no object. Pure.
 */
export function nodePatch(node: Node, driver: string, info: NodeInfo | undefined): object | undefined {
  const { annotations = {}, labels = {} } = node.metadata ?? {};
  const ids = idsOf(annotations[annotation]);
  const changed: { annotations?: object; labels?: object } = {};
  if (info === undefined ? Object.hasOwn(ids, driver) : ids[driver] !== info.nodeId) {
    const { [driver]: _, ...others } = ids;
    const now = info === undefined ? others : { ...others, [driver]: info.nodeId };
    changed.annotations = {
      [annotation]: Object.keys(now).length === 0 ? null : JSON.stringify(now),
    };
  }
  for (const [key, value] of Object.entries(info?.topology ?? {})) {
    const there = labels[key];
    if (there === value) continue;
    if (there !== undefined) {
      throw new KeelsonError(
        'FAILED_PRECONDITION',
        `detected topology value collision: driver reported "${key}":"${value}" but existing label is "${key}":"${there}"`,
      );
    }
    changed.labels = { ...changed.labels, [key]: value };
  }
  return Object.keys(changed).length === 0 ? undefined : { metadata: changed };
}

function idsOf(text: string | undefined): Record<string, unknown> {
  if (!text) return {};
  try {
    const ids: unknown = JSON.parse(text);
    if (typeof ids === 'object' && ids !== null && !Array.isArray(ids)) return ids as Record<string, unknown>;
  } catch {
    // Said below.
  }
  throw new KeelsonError('FAILED_PRECONDITION', `failed to parse node's "${annotation}" annotation value`);
}

export interface CsiNodeAnnouncer extends Announcer {
  /** Makes the object, also where there is no driver: its absence means a node that knows no CSI.
   * Returns the Node. */
  create(signal: AbortSignal): Promise<Node>;
}

export function makeAnnouncer(options: {
  readonly client: ApiserverClient;
  readonly nodeName: string;
  readonly clock: Clock;
}): CsiNodeAnnouncer {
  const { client, nodeName, clock } = options;
  const turns = keyedQueue();
  const object = `${path}/${encodeURIComponent(nodeName)}`;
  const nodePath = `/api/v1/nodes/${encodeURIComponent(nodeName)}`;

  const getObject = (): Promise<CsiNode | undefined> =>
    client.get<CsiNode>(object).catch((error: unknown) => {
      if (apiStatus(error) === 404) return undefined;
      throw error;
    });

  /** The object as it is now, of this Node; made where it was missing. */
  const own = async (node: Node): Promise<CsiNode> => {
    const found = await getObject();
    if (found !== undefined && isOwned(found, node)) {
      return { ...found, spec: { ...found.spec, drivers: found.spec.drivers ?? [] } };
    }
    if (found !== undefined) await client.delete(object);
    const made = await client.create<CsiNode>(path, emptyCsiNode(node));
    return { ...made, spec: { drivers: made.spec.drivers ?? [] } };
  };

  const withRetries = <T>(body: () => Promise<T>, signal?: AbortSignal): Promise<T> =>
    turns.run('', async () => {
      for (let attempt = 1; ; attempt++) {
        try {
          return await body();
        } catch (error) {
          const status = apiStatus(error);
          const passes = status === 409 || status === 404 || (status !== undefined && status >= 500);
          if (!passes || attempt === attempts || signal?.aborted) throw error;
          await sleep(clock, firstWaitMs * 4 ** attempt, signal);
        }
      }
    });

  const patchNode = async (node: Node, driver: string, info: NodeInfo | undefined) => {
    const patch = nodePatch(node, driver, info);
    if (patch !== undefined) await client.patch(`${nodePath}/status`, 'strategic', patch);
  };

  return {
    create: (signal) =>
      withRetries(async () => {
        const node = await client.get<Node>(nodePath);
        await own(node);
        return node;
      }, signal),
    install: (driver, info, signal) =>
      withRetries(async () => {
        const node = await client.get<Node>(nodePath);
        await patchNode(node, driver, info);
        const before = await own(node);
        const after = withDriver(before, driver, info);
        if (after !== before) await client.replace(object, after);
      }, signal),
    uninstall: (driver) =>
      withRetries(async () => {
        const before = await getObject();
        const after =
          before && withoutDriver({ ...before, spec: { drivers: before.spec.drivers ?? [] } }, driver);
        if (after !== undefined && after.spec.drivers.length !== (before?.spec.drivers ?? []).length) {
          await client.replace(object, after);
        }
        await patchNode(await client.get<Node>(nodePath), driver, undefined);
      }),
  };
}
