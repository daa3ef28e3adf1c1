/** Stand-ins for what the pods room works with: a runtime, images, volumes, an apiserver and a clock moved by hand. */

import type { ApiserverClient, EventRecorder, ObjectCache, Pod } from '../../../agent/apiserver/types.ts';
import type { ActionContext } from '../../../agent/pods/actions/context.ts';
import type { VolumeManager } from '../../../agent/volumes/types.ts';
import type {
  Container,
  ContainerConfig,
  ContainerEvent,
  ContainerStatus,
  ImageService,
  PodSandboxConfig,
  PodSandboxStatus,
  RuntimeService,
} from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { abortError, KeelsonError } from '../../../runtime/host/errors.ts';

export interface HandClock extends Clock {
  /** Moves the time and calls what is due, in order. */
  advance(ms: number): Promise<void>;
}

export const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/**
 * Until nothing works on files any more, which takes real time: deadlines of the hand clock must not pass meanwhile. What
 * waits for the clock itself is not waited for.
 */
async function filesSettled(): Promise<void> {
  const end = performance.now() + 2000;
  for (let calm = 0; calm < 10 && performance.now() < end; calm++) {
    await turn();
    if (process.getActiveResourcesInfo().some((kind) => kind.startsWith('FSReq'))) calm = 0;
  }
}

export function handClock(start: number): HandClock {
  let passed = 0;
  const timers = new Set<{ at: number; callback: () => void }>();
  return {
    now: () => start + passed,
    monotonic: () => passed,
    after(ms, callback) {
      const timer = { at: passed + Math.max(0, ms), callback };
      timers.add(timer);
      return () => timers.delete(timer);
    },
    async advance(ms) {
      await filesSettled();
      const end = passed + ms;
      for (;;) {
        const next = [...timers].sort((a, b) => a.at - b.at).find(({ at }) => at <= end);
        if (next === undefined) break;
        passed = Math.max(passed, next.at);
        timers.delete(next);
        next.callback();
        await filesSettled();
      }
      passed = end;
    },
  };
}

/** Waits until `condition` holds: for what happens without the clock. Fails after some seconds of real time. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const end = performance.now() + 8000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`did not happen: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

export interface FakeRuntime extends RuntimeService {
  readonly sandboxes: Map<string, PodSandboxStatus & { logDirectory: string }>;
  readonly containers: Map<string, ContainerStatus>;
  /** Every call that changes something, as `verb what`. */
  readonly calls: string[];
  /** Errors for the next calls of a verb. */
  readonly failures: Map<string, KeelsonError[]>;
  /** Containers that do not obey the stop signal. */
  readonly stubborn: Set<string>;
  /** Events get lost while true. */
  mute: boolean;
  exit(id: string, exitCode: number): void;
  loseSandbox(id: string): void;
}

/** A runtime in memory. `delay` is waited for before each change; it survives any number of agents. */
export function fakeRuntime(clock: Clock, delay: () => Promise<void> = turn): FakeRuntime {
  const sandboxes: FakeRuntime['sandboxes'] = new Map();
  const containers: FakeRuntime['containers'] = new Map();
  const calls: string[] = [];
  const failures: FakeRuntime['failures'] = new Map();
  const stubborn = new Set<string>();
  const listeners = new Set<(event: ContainerEvent) => void>();
  let count = 0;

  async function begin(verb: string, what: string, signal?: AbortSignal): Promise<void> {
    calls.push(`${verb} ${what}`);
    await delay();
    if (signal?.aborted) throw abortError(signal, verb);
    const failure = failures.get(verb)?.shift();
    if (failure !== undefined) throw failure;
  }
  function emit(type: ContainerEvent['type'], containerId: string, sandboxId: string): void {
    const sandbox = sandboxes.get(sandboxId)?.metadata;
    if (fake.mute || sandbox === undefined) return;
    for (const listener of listeners) listener({ type, containerId, at: clock.now(), sandbox });
  }
  function change(id: string, fields: Partial<ContainerStatus>, type: ContainerEvent['type']): void {
    const container = { ...containers.get(id)!, ...fields };
    containers.set(id, container);
    emit(type, id, container.podSandboxId);
  }
  function end(id: string, exitCode: number): void {
    const reason = exitCode === 0 ? 'Completed' : 'Error';
    change(id, { state: 'exited', exitCode, reason, finishedAt: clock.now(), pid: 0 }, 'stopped');
  }
  const matches = (
    labels: Readonly<Record<string, string>>,
    wanted: Readonly<Record<string, string>> | undefined,
  ) => Object.entries(wanted ?? {}).every(([key, value]) => labels[key] === value);
  function known<T>(map: ReadonlyMap<string, T>, id: string): T {
    const found = map.get(id);
    if (found === undefined) throw new KeelsonError('NOT_FOUND', `no ${id}`);
    return found;
  }

  const fake: FakeRuntime = {
    sandboxes,
    containers,
    calls,
    failures,
    stubborn,
    mute: false,
    exit: end,
    loseSandbox(id) {
      sandboxes.set(id, { ...sandboxes.get(id)!, state: 'notready' });
      for (const container of containers.values())
        if (container.podSandboxId === id && container.state === 'running') end(container.id, 137);
      emit('stopped', id, id);
    },
    version: async () => ({ runtimeName: 'fake', runtimeVersion: '1' }),
    status: async () => [],
    async runPodSandbox(config: PodSandboxConfig, runtimeHandler, signal) {
      await begin('runPodSandbox', config.metadata.name, signal);
      const id = `s${++count}`;
      sandboxes.set(id, {
        id,
        metadata: config.metadata,
        state: 'ready',
        createdAt: clock.now(),
        labels: config.labels,
        annotations: config.annotations,
        runtimeHandler,
        ips: config.linux.security.namespaces.network === 'node' ? [] : [`10.88.0.${count}`],
        namespaces: config.linux.security.namespaces,
        logDirectory: config.logDirectory,
      });
      return id;
    },
    async stopPodSandbox(id, signal) {
      await begin('stopPodSandbox', id, signal);
      const sandbox = sandboxes.get(id);
      if (sandbox === undefined) return;
      for (const container of containers.values())
        if (container.podSandboxId === id && container.state === 'running') end(container.id, 137);
      sandboxes.set(id, { ...sandbox, state: 'notready' });
    },
    async removePodSandbox(id, signal) {
      await begin('removePodSandbox', id, signal);
      for (const container of [...containers.values()])
        if (container.podSandboxId === id) containers.delete(container.id);
      sandboxes.delete(id);
    },
    podSandboxStatus: async (id) => known(sandboxes, id),
    listPodSandbox: async (filter) =>
      [...sandboxes.values()].filter(({ labels }) => matches(labels, filter?.labels)),
    async createContainer(sandboxId, config: ContainerConfig, signal) {
      await begin('createContainer', `${config.metadata.name}/${config.metadata.attempt}`, signal);
      const sandbox = known(sandboxes, sandboxId);
      const id = `c${++count}`;
      containers.set(id, {
        id,
        podSandboxId: sandboxId,
        metadata: config.metadata,
        image: config.userImage ?? config.image.image,
        imageRef: config.image.image,
        imageDigestRef: `repo@${config.image.image}`,
        state: 'created',
        createdAt: clock.now() + count / 1000,
        labels: config.labels,
        annotations: config.annotations,
        startedAt: 0,
        finishedAt: 0,
        exitCode: 0,
        reason: '',
        message: '',
        logPath: `${sandbox.logDirectory}/${config.logPath}`,
        mounts: config.mounts,
        pid: 0,
      });
      emit('created', id, sandboxId);
      return id;
    },
    async startContainer(id, signal) {
      await begin('startContainer', id, signal);
      if (known(containers, id).state !== 'created')
        throw new KeelsonError('FAILED_PRECONDITION', `${id} is not created`);
      change(id, { state: 'running', startedAt: clock.now(), pid: 1 }, 'started');
    },
    async stopContainer(id, timeoutMs, signal) {
      await begin('stopContainer', `${id} ${timeoutMs}`, signal);
      if (containers.get(id)?.state !== 'running') return;
      if (!stubborn.has(id)) return end(id, 143);
      await new Promise<void>((resolve, reject) => {
        const cancel = clock.after(timeoutMs, resolve);
        signal?.addEventListener('abort', () => {
          cancel();
          reject(abortError(signal, 'stop'));
        });
      });
      if (containers.get(id)?.state === 'running') end(id, 137);
    },
    async removeContainer(id, signal) {
      await begin('removeContainer', id, signal);
      containers.delete(id);
    },
    listContainers: async (filter) =>
      [...containers.values()].filter(({ labels }) => matches(labels, filter?.labels)) as Container[],
    containerStatus: async (id) => known(containers, id),
    async execSync(id, command, _timeoutMs, signal) {
      await begin('execSync', `${id} ${command.join(' ')}`, signal);
      return { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0), exitCode: command[0] === 'false' ? 1 : 0 };
    },
    updateContainerResources: async () => {},
    handlers: async () => [],
    features: async () => ({
      supplementalGroupsPolicy: true,
      userNamespacesHostNetwork: false,
      mountOptions: true,
    }),
    exec: async () => 0,
    attach: async () => {},
    portForward: async () => {},
    reopenContainerLog: async () => {},
    checkpointContainer: async () => {},
    containerEvents(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
  return fake;
}

export interface FakeImages extends ImageService {
  readonly present: Set<string>;
  readonly pulls: string[];
  /** A pull of one of these fails. */
  readonly missing: Set<string>;
  /** A pull of one of these never ends by itself. */
  readonly endless: Set<string>;
}

export function fakeImages(present: readonly string[] = []): FakeImages {
  const images: FakeImages = {
    present: new Set(present),
    pulls: [],
    missing: new Set(),
    endless: new Set(),
    listImages: async () => [],
    async imageStatus({ image }) {
      if (image.includes('//')) throw new KeelsonError('IMAGE_NAME_INVALID', `${image} is no image name`);
      const name = image.replace(/^id:/, '');
      if (!images.present.has(name)) return undefined;
      return { id: `id:${name}`, repoTags: [name], repoDigests: [], size: 1234, pinned: false };
    },
    async pullImage({ image }, options) {
      images.pulls.push(image);
      await turn();
      if (images.endless.has(image)) {
        await new Promise((_, reject) => {
          const { signal } = options ?? {};
          signal?.addEventListener('abort', () => reject(abortError(signal, 'pull')));
        });
      }
      if (images.missing.has(image)) throw new KeelsonError('IMAGE_NOT_FOUND', `no image ${image}`);
      images.present.add(image);
      return `id:${image}`;
    },
    removeImage: async () => {},
    imageFsInfo: async () => ({ mountpoint: '/', usedBytes: 0, usedInodes: 0 }),
  };
  return images;
}

/** Every pod may have every image, and pulls are not limited. */
export function fakeImageAccess(images: ImageService): ActionContext['imageAccess'] {
  return {
    pullAlwaysFallback: false,
    mustPull: async () => false,
    credentials: async () => ({ credentials: [], warnings: [] }),
    pull: async (image, _, signal) => ({ id: await images.pullImage({ image }, { signal }), tookMs: 0 }),
    forget: () => {},
  };
}

export interface FakeVolumes extends VolumeManager {
  readonly made: Set<string>;
  readonly failures: KeelsonError[];
}

export function fakeVolumes(): FakeVolumes {
  const volumes: FakeVolumes = {
    made: new Set(),
    failures: [],
    async setUp(pod) {
      await turn();
      const failure = volumes.failures.shift();
      if (failure !== undefined) throw failure;
      volumes.made.add(pod.metadata?.uid ?? '');
      return new Map();
    },
    refreshAfterMs: () => undefined,
    async tearDown(uid) {
      await turn();
      volumes.made.delete(uid);
    },
    podsOnDisk: async () => [...volumes.made],
  };
  return volumes;
}

export interface FakeApiserver extends ApiserverClient {
  readonly pods: Map<string, Pod>;
  readonly patches: { name: string; status: Pod['status'] }[];
  readonly deletes: string[];
  /** What the next calls fail with. */
  readonly failures: KeelsonError[];
  onChange: (type: 'ADDED' | 'MODIFIED' | 'DELETED', pod: Pod) => void;
}

export function apiError(status: number, reason: string): KeelsonError {
  return new KeelsonError('API_STATUS', reason, { details: { status, reason } });
}

/** Keeps pods, merges status patches, deletes with a uid precondition. */
export function fakeApiserver(): FakeApiserver {
  let version = 100;
  const unused = async (): Promise<never> => {
    throw new KeelsonError('UNIMPLEMENTED', 'not used here');
  };
  const nameOf = (path: string) => path.split('/')[6] ?? '';
  const api: FakeApiserver = {
    pods: new Map(),
    patches: [],
    deletes: [],
    failures: [],
    onChange: () => {},
    async get<T>(path: string): Promise<T> {
      await turn();
      if (path.startsWith('/api/v1/nodes/')) return { metadata: { uid: 'uid-of-the-node' } } as T;
      const pod = api.pods.get(nameOf(path));
      if (pod === undefined) throw apiError(404, 'NotFound');
      return pod as T;
    },
    list: unused,
    async create<T>(_path: string, body: object): Promise<T> {
      await turn();
      const failure = api.failures.shift();
      if (failure !== undefined) throw failure;
      const { metadata, ...pod } = body as Pod;
      if (api.pods.has(metadata!.name!)) throw apiError(409, 'AlreadyExists');
      const made = {
        ...pod,
        metadata: { ...metadata, uid: `made-${++version}`, resourceVersion: String(version) },
        status: { phase: 'Pending' },
      } as Pod;
      api.pods.set(metadata!.name!, made);
      setImmediate(() => api.onChange('ADDED', made));
      return made as T;
    },
    replace: unused,
    async patch<T>(path: string, _type: string, body: object): Promise<T> {
      await turn();
      const failure = api.failures.shift();
      if (failure !== undefined) throw failure;
      const pod = api.pods.get(nameOf(path));
      if (pod === undefined) throw apiError(404, 'NotFound');
      const { metadata, status = {} } = body as Pod;
      if (metadata?.uid !== pod.metadata?.uid) throw apiError(409, 'Conflict: uid');
      api.patches.push({ name: nameOf(path), status });
      const conditions = new Map((pod.status?.conditions ?? []).map((one) => [one.type, one]));
      for (const one of status.conditions ?? [])
        conditions.set(one.type, { ...conditions.get(one.type), ...one });
      const plain = (list: readonly object[] | undefined) => list?.filter((one) => !('$patch' in one));
      const merged = {
        ...pod.status,
        ...status,
        conditions: [...conditions.values()].filter((one) => !('$patch' in one)),
        ...(status.podIPs ? { podIPs: plain(status.podIPs) } : {}),
        ...(status.hostIPs ? { hostIPs: plain(status.hostIPs) } : {}),
      };
      version = Math.max(version, Number(pod.metadata?.resourceVersion ?? 0)) + 1;
      const next = {
        ...pod,
        metadata: { ...pod.metadata, resourceVersion: String(version) },
        status: merged,
      } as Pod;
      api.pods.set(nameOf(path), next);
      // What is not the newest any more, or is gone, was told by the test itself or is told by the patch after this
      // one: a watch never goes back.
      setImmediate(() => {
        if (api.pods.get(nameOf(path)) === next) api.onChange('MODIFIED', next);
      });
      return next as T;
    },
    async delete(path, body) {
      await turn();
      const failure = api.failures.shift();
      if (failure !== undefined) throw failure;
      const pod = api.pods.get(nameOf(path));
      if (pod === undefined) throw apiError(404, 'NotFound');
      const { gracePeriodSeconds, preconditions } = body as {
        gracePeriodSeconds: number;
        preconditions: { uid: string };
      };
      if (preconditions.uid !== pod.metadata?.uid) throw apiError(409, 'Conflict: uid');
      if (gracePeriodSeconds !== 0) throw apiError(400, 'BadRequest');
      api.pods.delete(nameOf(path));
      api.deletes.push(nameOf(path));
      setImmediate(() => api.onChange('DELETED', pod));
    },
    watch: () => {
      throw new KeelsonError('UNIMPLEMENTED', 'not used here');
    },
    requests: new Map(),
    close: async () => {},
  };
  return api;
}

export function fakeObjects(): ObjectCache & { readonly retained: Set<string> } {
  const retained = new Set<string>();
  return {
    retained,
    get: async (kind, _namespace, name) => {
      throw apiError(404, `${kind} "${name}" not found`);
    },
    services: async () => [],
    retain: (uid) => {
      retained.add(uid);
    },
    release: (uid) => {
      retained.delete(uid);
    },
  };
}

export function fakeEvents(): EventRecorder & { readonly told: string[] } {
  const told: string[] = [];
  return {
    told,
    event: (about, type, reason, message) => {
      told.push(`${type} ${reason} ${about.fieldPath ?? about.metadata?.name}: ${message}`);
    },
  };
}
