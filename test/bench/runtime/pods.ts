/** Pods through the container runtime interface, each call timed: what the kubelet asks of a runtime, in its order. */
import { join } from 'node:path';
import type { WireInput } from '../../../runtime/cri/wire/types.ts';
import type { CriClient } from '../../cri/client.ts';

export const calls = [
  'pod_create',
  'container_create',
  'container_start',
  'exec_sync',
  'container_stop',
  'container_remove',
  'pod_stop',
  'pod_remove',
] as const;
export type Call = (typeof calls)[number];

/** Milliseconds of every single call. */
export type Times = Record<Call, number[]>;

export interface Target {
  readonly cri: CriClient;
  readonly image: string;
  /** Logs of pods go below it. */
  readonly logs: string;
  /** Absolute within the hierarchy. */
  readonly cgroup: string;
}

export interface BenchPod {
  readonly sandbox: string;
  readonly container: string;
}

export const noTimes = (): Times => Object.fromEntries(calls.map((call) => [call, []])) as unknown as Times;

const deadline = { deadlineMs: 120_000 };
/** Ends at once on TERM, so that a stop takes what the runtime takes. */
const untilTerm = ['sh', '-c', 'trap "exit 0" TERM; sleep 1000000 & wait'];
let count = 0;

async function timed<T>(times: Times, call: Call, work: () => Promise<T>): Promise<T> {
  const from = performance.now();
  const result = await work();
  times[call].push(performance.now() - from);
  return result;
}

/** From nothing to a started container. */
export async function bringUp({ cri, image, logs, cgroup }: Target, times: Times): Promise<BenchPod> {
  const uid = `bench-${++count}`;
  const namespaceOptions = { network: 'POD', pid: 'CONTAINER', ipc: 'POD' } as const;
  const sandboxConfig: WireInput<'PodSandboxConfig'> = {
    metadata: { name: uid, uid, namespace: 'default' },
    hostname: uid,
    logDirectory: join(logs, uid),
    dnsConfig: { servers: ['10.96.0.10'], searches: ['default.svc.cluster.local'], options: ['ndots:5'] },
    linux: { cgroupParent: `${cgroup}/${uid}`, securityContext: { namespaceOptions } },
  };
  const config: WireInput<'ContainerConfig'> = {
    metadata: { name: 'main' },
    image: { image },
    command: untilTerm,
    logPath: 'main.log',
    linux: { securityContext: { namespaceOptions } },
  };
  const { podSandboxId } = await timed(times, 'pod_create', () =>
    cri.call('RunPodSandbox', { config: sandboxConfig }, deadline),
  );
  const { containerId } = await timed(times, 'container_create', () =>
    cri.call('CreateContainer', { podSandboxId, config, sandboxConfig }, deadline),
  );
  await timed(times, 'container_start', () => cri.call('StartContainer', { containerId }, deadline));
  return { sandbox: podSandboxId, container: containerId };
}

/** Throws where the command did not print what it should. */
export async function execIn({ cri }: Target, { container }: BenchPod, times: Times): Promise<void> {
  const { stdout, exitCode } = await timed(times, 'exec_sync', () =>
    cri.call('ExecSync', { containerId: container, cmd: ['echo', 'there'], timeout: 60n }, deadline),
  );
  if (exitCode !== 0 || stdout.toString('utf8') !== 'there\n') {
    throw new Error(`exec gave ${exitCode}: ${stdout.toString('utf8')}`);
  }
}

export async function takeDown({ cri }: Target, pod: BenchPod, times: Times): Promise<void> {
  const [containerId, podSandboxId] = [pod.container, pod.sandbox];
  await timed(times, 'container_stop', () =>
    cri.call('StopContainer', { containerId, timeout: 30n }, deadline),
  );
  await timed(times, 'container_remove', () => cri.call('RemoveContainer', { containerId }, deadline));
  await timed(times, 'pod_stop', () => cri.call('StopPodSandbox', { podSandboxId }, deadline));
  await timed(times, 'pod_remove', () => cri.call('RemovePodSandbox', { podSandboxId }, deadline));
}

/** Whole lives, one after the other. */
export async function oneAtATime(target: Target, pods: number, times: Times): Promise<void> {
  for (let turn = 0; turn < pods; turn++) {
    const pod = await bringUp(target, times);
    await execIn(target, pod, times);
    await takeDown(target, pod, times);
  }
}

/** All of them started, then a command in each, then all ended, `lanes` at a time. Returns pods started per second. */
export async function manyAtATime(
  target: Target,
  pods: number,
  lanes: number,
  times: Times,
): Promise<number> {
  const up: BenchPod[] = [];
  const from = performance.now();
  await inLanes(pods, lanes, async () => {
    up.push(await bringUp(target, times));
  });
  const perSecond = (pods * 1000) / (performance.now() - from);
  await inLanes(pods, lanes, (index) => execIn(target, up[index]!, times));
  await inLanes(pods, lanes, (index) => takeDown(target, up[index]!, times));
  return perSecond;
}

async function inLanes(items: number, lanes: number, work: (index: number) => Promise<void>): Promise<void> {
  let next = 0;
  const lane = async () => {
    while (next < items) await work(next++);
  };
  await Promise.all(Array.from({ length: lanes }, lane));
}
