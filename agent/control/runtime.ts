/** The verbs about containers and pods: names are found, the runtime does the work. */
import type { RuntimeDetails, RuntimeService, RuntimeStats } from '../../runtime/api.ts';
import { abortError, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { StreamingUrls } from '../../runtime/streaming/types.ts';
import { containerName, findContainer, findPod, findPrevious, podName, withPods } from './find.ts';
import type { Handlers } from './images.ts';
import type { Kind, Verb } from './protocol.ts';
import { amountOf, flagOf, type Request, textOf, textsOf } from './request.ts';

/** The embedded runtime, or that of somebody else. */
export type AskedRuntime = RuntimeService &
  Omit<RuntimeStats, 'metricDescriptors' | 'listPodSandboxMetrics'> &
  Pick<RuntimeDetails, 'containerInfo' | 'sandboxInfo'>;

export interface RuntimeVerbsOptions {
  /** Undefined while the agent is starting. */
  readonly runtime: () => AskedRuntime | undefined;
  /** Whoever hands out the URLs of streams. */
  readonly streaming: () => Promise<StreamingUrls>;
}

export function runtimeVerbs({
  runtime: find,
  streaming,
}: RuntimeVerbsOptions): Pick<Handlers, Extract<Verb, `runtime/${string}`>> {
  const running = () => {
    const runtime = find();
    if (runtime !== undefined) return runtime;
    throw new KeelsonError('UNAVAILABLE', 'the agent is starting: its runtime is not there yet', {
      hint: 'try again in a moment',
    });
  };
  const pods = () => running().listPodSandbox();
  const containers = async () => {
    // In this order: a container is never older than its sandbox.
    const all = await running().listContainers();
    return withPods(all, await pods());
  };
  const findNamed = async (kind: Kind, name: string) => {
    if (kind === 'container') {
      const container = findContainer(name, await containers());
      return {
        id: container.id,
        name: containerName(container),
        live: container.state === 'running' || container.state === 'created',
      };
    }
    const pod = findPod(name, await pods());
    return { id: pod.id, name: podName(pod.metadata), live: pod.state === 'ready' };
  };

  return {
    async 'runtime/containers'(request) {
      const all = await containers();
      if (request['pod'] === undefined) return all;
      const { id } = findPod(textOf(request, 'pod'), await pods());
      return all.filter(({ podSandboxId }) => podSandboxId === id);
    },
    async 'runtime/pods'() {
      const runtime = running();
      const all = await runtime.listContainers();
      const statuses = await Promise.all(
        (await pods()).map(({ id }) => orGone(runtime.podSandboxStatus(id))),
      );
      return statuses
        .filter((status) => status !== undefined)
        .map((status) => {
          const own = all.filter(({ podSandboxId }) => podSandboxId === status.id);
          const up = own.filter(({ state }) => state === 'running');
          return { ...status, containers: { running: up.length, all: own.length } };
        });
    },
    async 'runtime/inspect'(request) {
      const kind = kindOf(request);
      const { id } = await findNamed(kind, textOf(request, 'name'));
      const runtime = running();
      const [status, info] = await (kind === 'pod'
        ? Promise.all([runtime.podSandboxStatus(id), runtime.sandboxInfo(id)])
        : Promise.all([runtime.containerStatus(id), runtime.containerInfo(id)]));
      return { status, info };
    },
    async 'runtime/container-stats'(request, { signal }) {
      const names = textsOf(request, 'names');
      const runtime = running();
      const all = await containers();
      const podOf = new Map(all.map(({ id, pod }) => [id, pod]));
      const found = names.map((name) => findContainer(name, all));
      const stats = await (names.length === 0
        ? runtime.listContainerStats({}, signal)
        : Promise.all(found.map(({ id }) => runtime.containerStats(id, signal))));
      return stats.flatMap((one) => {
        const pod = podOf.get(one.id);
        return pod === undefined ? [] : [{ ...one, pod }];
      });
    },
    async 'runtime/pod-stats'(request, { signal }) {
      const names = textsOf(request, 'names');
      const runtime = running();
      if (names.length === 0) return runtime.listPodSandboxStats({}, signal);
      const all = await pods();
      return Promise.all(names.map((name) => runtime.podSandboxStats(findPod(name, all).id, signal)));
    },
    async 'runtime/events'(_request, { signal, onProgress }) {
      const end = running().containerEvents((event) => onProgress?.({ event }));
      onProgress?.({});
      return new Promise<never>((_resolve, reject) => {
        const leave = () => {
          end();
          reject(abortError(signal, 'the stream of events'));
        };
        signal.addEventListener('abort', leave, { once: true });
        if (signal.aborted) leave();
      });
    },
    async 'runtime/stop'(request, { signal }) {
      const kind = kindOf(request);
      const { id, name } = await findNamed(kind, textOf(request, 'name'));
      if (kind === 'pod') await running().stopPodSandbox(id, signal);
      else await running().stopContainer(id, amountOf(request, 'timeoutMs') ?? 10_000, signal);
      return { id, name };
    },
    async 'runtime/remove'(request, { signal }) {
      const kind = kindOf(request);
      const { id, name, live } = await findNamed(kind, textOf(request, 'name'));
      if (live && !flagOf(request, 'force')) {
        throw new KeelsonError('FAILED_PRECONDITION', `${kind} ${name} has not ended`, {
          hint: "'keelson stop' it first, or remove it with --force",
        });
      }
      if (kind === 'container') await running().removeContainer(id, signal);
      else {
        await running().stopPodSandbox(id, signal);
        await running().removePodSandbox(id, signal);
      }
      return { id, name };
    },
    async 'runtime/log'(request) {
      const all = await containers();
      const current = findContainer(textOf(request, 'container'), all);
      const one = flagOf(request, 'previous') ? findPrevious(current, all) : current;
      const { logPath, state } = await running().containerStatus(one.id);
      return {
        id: one.id,
        name: containerName(one),
        logPath,
        running: state === 'running' || state === 'created',
      };
    },
    async 'runtime/wait'(request, { signal }) {
      const id = textOf(request, 'id');
      const runtime = running();
      return new Promise((resolve, reject) => {
        const finish = (settle: () => void) => {
          end();
          signal.removeEventListener('abort', leave);
          settle();
        };
        const look = () =>
          runtime.containerStatus(id).then(
            ({ state, exitCode }) => {
              if (state === 'exited' || state === 'unknown') finish(() => resolve({ exitCode }));
            },
            (error: unknown) => finish(() => reject(error)),
          );
        const leave = () => finish(() => reject(abortError(signal, 'waiting for a container')));
        const end = runtime.containerEvents(({ containerId }) => {
          if (containerId === id) void look();
        });
        signal.addEventListener('abort', leave, { once: true });
        if (signal.aborted) leave();
        void look();
      });
    },
    async 'runtime/exec'(request) {
      const { id } = await findNamed('container', textOf(request, 'container'));
      const tty = flagOf(request, 'tty');
      const command = textsOf(request, 'command');
      const stdin = flagOf(request, 'stdin');
      const urls = await streaming();
      return { url: await urls.exec({ containerId: id, command, stdin, stdout: true, stderr: !tty, tty }) };
    },
    async 'runtime/attach'(request) {
      const { id } = await findNamed('container', textOf(request, 'container'));
      const { config, runtimeSpec } = (await running().containerInfo(id)) as {
        config?: { tty?: boolean; stdin?: boolean };
        runtimeSpec?: { process?: { terminal?: boolean } };
      };
      // Not every runtime tells the configuration (CRI-O): then the container may have an input.
      const tty = config?.tty ?? runtimeSpec?.process?.terminal ?? false;
      const stdin = (config === undefined || config.stdin === true) && flagOf(request, 'stdin');
      const urls = await streaming();
      return {
        url: await urls.attach({ containerId: id, stdin, stdout: true, stderr: !tty, tty }),
        tty,
        stdin,
      };
    },
    async 'runtime/port-forward'(request) {
      const { id, name } = await findNamed('pod', textOf(request, 'pod'));
      const urls = await streaming();
      return { id, name, url: await urls.portForward({ podSandboxId: id, ports: [] }) };
    },
  };
}

function kindOf(request: Request): Kind {
  const { kind } = request;
  if (kind === 'container' || kind === 'pod') return kind;
  throw new KeelsonError('INVALID_ARGUMENT', 'kind: container or pod is expected');
}

/** Undefined for what was removed meanwhile. */
async function orGone<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (isError(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
}
