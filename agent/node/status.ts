/** The Node's status: what is to be written there, when, and what is told as events. Pure. */
import { rfc3339 } from '../../runtime/host/clock.ts';
import type { NodeCondition } from '../apiserver/types.ts';
import type { NodeFacts } from './facts.ts';
import type { Pressure } from './pressure.ts';
import { nodeResources } from './resources.ts';
import type { NodeConfig, NodeStatusNow, RuntimeReport } from './types.ts';

export interface StatusInput {
  readonly facts: NodeFacts;
  readonly runtime: RuntimeReport;
  readonly pressure: Pressure;
  readonly config: NodeConfig;
  /** What the apiserver has. */
  readonly previous?: NodeStatusNow;
  /** `v1.37.0-keelson.0.1.0`. */
  readonly kubeletVersion: string;
  /** Why the node takes no pods although its runtime would, such as a shutdown. */
  readonly notReady?: string;
  /** Sorted; the same for the life of the process. */
  readonly declaredFeatures?: readonly string[];
  readonly nowMs: number;
}

interface Verdict {
  readonly type: string;
  readonly status: 'True' | 'False';
  readonly reason: string;
  readonly message: string;
}

export interface NodeEvent {
  readonly type: 'Normal' | 'Warning';
  readonly reason: string;
  readonly message: string;
}

const namesPerImage = 5;

/** The whole status as it should be. Conditions that others keep (node-problem-detector) are left in it as they are. */
export function nodeStatus(input: StatusInput): NodeStatusNow {
  const { facts, config, previous, nowMs } = input;
  const { capacity, allocatable } = nodeResources(facts, config, previous);
  return {
    capacity,
    allocatable,
    conditions: conditions(verdicts(input), previous?.conditions ?? [], rfc3339(nowMs)),
    addresses: [
      ...facts.addresses.map((address) => ({ type: 'InternalIP', address })),
      { type: 'Hostname', address: hostnameOf(config) },
    ],
    daemonEndpoints: { kubeletEndpoint: { Port: config.enableServer ? config.port : 0 } },
    nodeInfo: {
      machineID: facts.machineId,
      systemUUID: facts.systemUuid,
      bootID: facts.bootId,
      kernelVersion: facts.kernelVersion,
      osImage: facts.osImage,
      containerRuntimeVersion: input.runtime.runtimeVersion,
      kubeletVersion: input.kubeletVersion,
      // Deprecated and meaningless (KEP-4004), but some clients insist on the field.
      kubeProxyVersion: '',
      operatingSystem: 'linux',
      architecture: facts.architecture,
      ...(facts.swapBytes > 0 ? { swap: { capacity: facts.swapBytes } } : {}),
    },
    images: listedImages(input.runtime.images, config.nodeStatusMaxImages),
    ...abilities(input),
    ...(input.declaredFeatures?.length ? { declaredFeatures: [...input.declaredFeatures] } : {}),
  };
}

/** Sorted; of two with one name the first counts. */
function listedHandlers(handlers: NonNullable<RuntimeReport['handlers']>) {
  const byName = new Map([...handlers].reverse().map((handler) => [handler.name, handler]));
  return [...byName.values()]
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ name, recursiveReadOnlyMounts, userNamespaces }) => ({
      name,
      features: { recursiveReadOnlyMounts, userNamespaces },
    }));
}

/** While the runtime has not told, what the apiserver has is left. */
function abilities({ runtime, previous }: StatusInput): Pick<NodeStatusNow, 'features' | 'runtimeHandlers'> {
  const { features, handlers } = runtime;
  const told = {
    runtimeHandlers: handlers === undefined ? previous?.runtimeHandlers : listedHandlers(handlers),
    features:
      features === undefined
        ? previous?.features
        : { supplementalGroupsPolicy: features.supplementalGroupsPolicy },
  };
  return Object.fromEntries(Object.entries(told).filter(([, value]) => value !== undefined));
}

/** The name in the node's address and its label. Without a cloud provider, kubelet has one name for both. */
export function hostnameOf(config: NodeConfig): string {
  return config.keelson.hostnameOverride ?? config.nodeName;
}

/** kubelet's conditions with kubelet's reasons and messages, which tools and people search for. */
function verdicts({ runtime, pressure, notReady }: StatusInput): readonly Verdict[] {
  const problems = runtimeProblems(runtime);
  if (notReady !== undefined) problems.push(notReady);
  return [
    pressure.memory
      ? verdict(
          'MemoryPressure',
          true,
          'KubeletHasInsufficientMemory',
          'kubelet has insufficient memory available',
        )
      : verdict(
          'MemoryPressure',
          false,
          'KubeletHasSufficientMemory',
          'kubelet has sufficient memory available',
        ),
    pressure.disk
      ? verdict('DiskPressure', true, 'KubeletHasDiskPressure', 'kubelet has disk pressure')
      : verdict('DiskPressure', false, 'KubeletHasNoDiskPressure', 'kubelet has no disk pressure'),
    pressure.pid
      ? verdict('PIDPressure', true, 'KubeletHasInsufficientPID', 'kubelet has insufficient PID available')
      : verdict('PIDPressure', false, 'KubeletHasSufficientPID', 'kubelet has sufficient PID available'),
    problems.length === 0
      ? verdict('Ready', true, 'KubeletReady', 'kubelet is posting ready status')
      : verdict(
          'Ready',
          false,
          'KubeletNotReady',
          problems.length === 1 ? problems[0]! : `[${problems.join(', ')}]`,
        ),
  ];
}

function runtimeProblems(runtime: RuntimeReport): string[] {
  if (runtime.failure !== undefined) return [`container runtime is down: ${runtime.failure}`];
  const problems: string[] = [];
  for (const type of ['RuntimeReady', 'NetworkReady'] as const) {
    const what = type === 'RuntimeReady' ? 'container runtime' : 'container runtime network';
    const condition = runtime.conditions.find((one) => one.type === type);
    if (condition === undefined) problems.push(`${what} not ready: condition ${type} is missing`);
    else if (!condition.status) {
      const { reason, message } = condition;
      problems.push(`${what} not ready: ${type}=false reason:${reason} message:${message}`);
    }
  }
  return problems;
}

function verdict(type: string, status: boolean, reason: string, message: string): Verdict {
  return { type, status: status ? 'True' : 'False', reason, message };
}

function conditions(
  own: readonly Verdict[],
  previous: readonly NodeCondition[],
  now: string,
): NodeCondition[] {
  const foreign = previous.filter(({ type }) => !own.some((one) => one.type === type));
  return [
    ...foreign,
    ...own.map((one) => {
      const before = previous.find(({ type }) => type === one.type);
      return {
        ...one,
        lastHeartbeatTime: now,
        lastTransitionTime: (before?.status === one.status && before.lastTransitionTime) || now,
      };
    }),
  ];
}

function listedImages(
  images: RuntimeReport['images'],
  most: number,
): { names: string[]; sizeBytes: number }[] {
  const named = images
    .filter(({ names }) => names.length > 0)
    .map(({ names, sizeBytes }) => ({ names: names.slice(0, namesPerImage), sizeBytes }))
    .sort((a, b) => b.sizeBytes - a.sizeBytes || (a.names[0]! < b.names[0]! ? -1 : 1));
  return most < 0 ? named : named.slice(0, most);
}

/** True when more than heartbeat times differs. */
export function statusChanged(before: NodeStatusNow | undefined, after: NodeStatusNow): boolean {
  // Declared features cannot change after the start, when the status is written in any case. An apiserver that does not
  // know them yet drops them, which must not have the status written again and again.
  const { declaredFeatures: _, ...patch } = statusPatch(before, after, false);
  return Object.keys(patch).length > 0;
}

/**
 * The strategic merge patch of `status` that makes `after` of `before`: only fields that differ. With `heartbeat`, the
 * node's own conditions are in it in any case. Lists that merge by key in the schema are handled as kubelet does:
 * conditions by their type, addresses replaced as a whole (kubernetes/kubernetes issue 79391).
 */
export function statusPatch(
  before: NodeStatusNow | undefined,
  after: NodeStatusNow,
  heartbeat: boolean,
): Record<string, unknown> {
  const patch: Record<string, unknown> = {};
  for (const name of ['daemonEndpoints', 'nodeInfo', 'images', 'runtimeHandlers', 'features'] as const) {
    // The apiserver does not keep an empty list apart from none.
    if (isNone(before?.[name]) && isNone(after[name])) continue;
    if (!same(before?.[name], after[name])) patch[name] = after[name] ?? null;
  }
  if (!same(before?.declaredFeatures ?? [], after.declaredFeatures ?? [])) {
    patch['declaredFeatures'] = after.declaredFeatures ?? null;
  }
  if (before?.nodeInfo?.swap !== undefined && after.nodeInfo?.swap === undefined) {
    patch['nodeInfo'] = { ...after.nodeInfo, swap: null };
  }
  for (const name of ['capacity', 'allocatable'] as const) {
    const old = before?.[name] ?? {};
    const wanted = after[name] ?? {};
    if (same(old, wanted)) continue;
    const gone = Object.keys(old).filter((key) => !(key in wanted));
    patch[name] = { ...wanted, ...Object.fromEntries(gone.map((key) => [key, null])) };
  }
  if (!same(before?.addresses, after.addresses)) {
    patch['addresses'] = [...(after.addresses ?? []), { $patch: 'replace' }];
  }
  const changed = (after.conditions ?? []).filter((condition) => {
    const old = before?.conditions?.find(({ type }) => type === condition.type);
    return heartbeat
      ? old?.lastHeartbeatTime !== condition.lastHeartbeatTime || !same(old, condition)
      : !same({ ...old, lastHeartbeatTime: '' }, { ...condition, lastHeartbeatTime: '' });
  });
  if (changed.length > 0) patch['conditions'] = changed;
  return patch;
}

function isNone(value: unknown): boolean {
  return value === undefined || (Array.isArray(value) && value.length === 0);
}

/** The events that a change of conditions is told by, with kubelet's names. */
export function conditionEvents(
  nodeName: string,
  before: NodeStatusNow | undefined,
  after: NodeStatusNow,
): readonly NodeEvent[] {
  const told: Readonly<Record<string, readonly [whenTrue: string, whenFalse: string]>> = {
    Ready: ['NodeReady', 'NodeNotReady'],
    MemoryPressure: ['NodeHasInsufficientMemory', 'NodeHasSufficientMemory'],
    DiskPressure: ['NodeHasDiskPressure', 'NodeHasNoDiskPressure'],
    PIDPressure: ['NodeHasInsufficientPID', 'NodeHasSufficientPID'],
  };
  const events: NodeEvent[] = [];
  for (const { type, status } of after.conditions ?? []) {
    const names = told[type];
    if (names === undefined) continue;
    if (before?.conditions?.find((one) => one.type === type)?.status === status) continue;
    const reason = names[status === 'True' ? 0 : 1];
    events.push({ type: 'Normal', reason, message: `Node ${nodeName} status is now: ${reason}` });
  }
  const booted = before?.nodeInfo?.bootID;
  const boot = after.nodeInfo?.bootID ?? '';
  if (booted && boot && booted !== boot) {
    events.push({
      type: 'Warning',
      reason: 'Rebooted',
      message: `Node ${nodeName} has been rebooted, boot id: ${boot}`,
    });
  }
  return events;
}

/** Equal as JSON, whatever the order of keys; undefined fields count as absent. */
export function same(a: unknown, b: unknown): boolean {
  if (a === b) return true;
  if (typeof a !== 'object' || typeof b !== 'object' || a === null || b === null) return false;
  if (Array.isArray(a) || Array.isArray(b)) {
    return (
      Array.isArray(a) &&
      Array.isArray(b) &&
      a.length === b.length &&
      a.every((value, i) => same(value, b[i]))
    );
  }
  const left = Object.entries(a).filter(([, value]) => value !== undefined);
  const right = new Map(Object.entries(b).filter(([, value]) => value !== undefined));
  return (
    left.length === right.size && left.every(([key, value]) => right.has(key) && same(value, right.get(key)))
  );
}
