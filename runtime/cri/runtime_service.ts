/** runtime.v1.RuntimeService over the runtime of the process: requests in, answers out, and nothing decided here. */
import type { RuntimeDetails, RuntimeService, RuntimeStats } from '../api.ts';
import type { Clock } from '../host/clock.ts';
import { KeelsonError } from '../host/errors.ts';
import type { StreamingUrls } from '../streaming/types.ts';
import { orGone, sendEvents } from './events.ts';
import { containerConfigOf, given, millisecondsOf, resourcesOf, sandboxConfigOf } from './from_wire.ts';
import type { RuntimeHandlers } from './handlers.ts';
import { makeIds } from './ids.ts';
import { containerStates, sandboxStates, wordOf } from './names.ts';
import { sendInParts } from './parts.ts';
import { containerStatsTo, metricsTo, sandboxStatsTo } from './stats_wire.ts';
import {
  containerStatusTo,
  containerTo,
  execResultTo,
  infoOf,
  nanoseconds,
  sandboxStatusTo,
  sandboxTo,
} from './to_wire.ts';
import type { Wire } from './wire/types.ts';

export type ServedRuntime = RuntimeService & RuntimeStats & RuntimeDetails;

export interface RuntimeServiceOptions {
  readonly runtime: ServedRuntime;
  readonly streaming: StreamingUrls;
  readonly clock: Clock;
  /** What the verbose status tells besides: the configuration, the networks. */
  info(): Promise<Readonly<Record<string, unknown>>>;
  podCidrs?(cidrs: string): Promise<void>;
}

const unimplemented = (message: string) => () => Promise.reject(new KeelsonError('UNIMPLEMENTED', message));

export function makeRuntimeHandlers({
  runtime,
  streaming,
  clock,
  info,
  podCidrs,
}: RuntimeServiceOptions): RuntimeHandlers {
  const ids = makeIds(runtime);
  const sandboxFilter = async (filter: Wire<'PodSandboxFilter'> | undefined) => ({
    id: filter?.id ? await ids.sandbox(filter.id) : undefined,
    state: filter?.state && wordOf(sandboxStates, filter.state.state, 'filter.state'),
    labels: filter?.labelSelector,
  });
  const listSandboxes = async (filter: Wire<'PodSandboxFilter'> | undefined) =>
    (await runtime.listPodSandbox(await sandboxFilter(filter))).map(sandboxTo);
  const listContainers = async (filter: Wire<'ContainerFilter'> | undefined) =>
    (
      await runtime.listContainers({
        id: filter?.id ? await ids.container(filter.id) : undefined,
        podSandboxId: filter?.podSandboxId ? await ids.sandbox(filter.podSandboxId) : undefined,
        state: filter?.state && wordOf(containerStates, filter.state.state, 'filter.state'),
        labels: filter?.labelSelector,
      })
    ).map(containerTo);
  const containerStats = async (filter: Wire<'ContainerStatsFilter'> | undefined, signal: AbortSignal) =>
    (
      await runtime.listContainerStats(
        {
          id: filter?.id ? await ids.container(filter.id) : undefined,
          podSandboxId: filter?.podSandboxId ? await ids.sandbox(filter.podSandboxId) : undefined,
          labels: filter?.labelSelector,
        },
        signal,
      )
    ).map(containerStatsTo);
  const sandboxStats = async (filter: Wire<'PodSandboxStatsFilter'> | undefined, signal: AbortSignal) =>
    (
      await runtime.listPodSandboxStats(
        { id: filter?.id ? await ids.sandbox(filter.id) : undefined, labels: filter?.labelSelector },
        signal,
      )
    ).map(sandboxStatsTo);
  const metrics = async (signal: AbortSignal) => (await runtime.listPodSandboxMetrics(signal)).map(metricsTo);

  return {
    async Version() {
      return { version: '0.1.0', ...(await runtime.version()), runtimeApiVersion: 'v1' };
    },
    async Status({ verbose }) {
      const [conditions, handlers, features, facts] = await Promise.all([
        runtime.status(),
        runtime.handlers(),
        runtime.features(),
        verbose ? info() : {},
      ]);
      return {
        status: { conditions },
        info: infoOf(facts),
        runtimeHandlers: handlers.map(({ name, recursiveReadOnlyMounts, userNamespaces }) => ({
          name,
          features: { recursiveReadOnlyMounts, userNamespaces },
        })),
        features,
      };
    },
    async RuntimeConfig() {
      return { linux: { cgroupDriver: runtime.cgroupDriver === 'systemd' ? 'SYSTEMD' : 'CGROUPFS' } };
    },
    async UpdateRuntimeConfig({ runtimeConfig }) {
      await podCidrs?.(runtimeConfig?.networkConfig?.podCidr ?? '');
      return {};
    },

    async RunPodSandbox({ config, runtimeHandler }, { signal }) {
      return { podSandboxId: await runtime.runPodSandbox(sandboxConfigOf(config), runtimeHandler, signal) };
    },
    async StopPodSandbox({ podSandboxId }, { signal }) {
      await runtime.stopPodSandbox(await ids.sandbox(podSandboxId), signal);
      return {};
    },
    async RemovePodSandbox({ podSandboxId }, { signal }) {
      await runtime.removePodSandbox(await ids.sandbox(podSandboxId), signal);
      return {};
    },
    async PodSandboxStatus({ podSandboxId, verbose }) {
      const id = await ids.sandbox(podSandboxId);
      const timestamp = nanoseconds(clock.now());
      const status = await runtime.podSandboxStatus(id);
      const containers = await runtime.listContainers({ podSandboxId: id });
      const statuses = await Promise.all(containers.map((one) => orGone(runtime.containerStatus(one.id))));
      return {
        status: sandboxStatusTo(status),
        info: verbose ? infoOf({ info: await runtime.sandboxInfo(id) }) : {},
        containersStatuses: statuses.filter((one) => one !== undefined).map(containerStatusTo),
        timestamp,
      };
    },
    ListPodSandbox: async ({ filter }) => ({ items: await listSandboxes(filter) }),
    StreamPodSandboxes: async ({ filter }, call) =>
      sendInParts('PodSandbox', await listSandboxes(filter), (part) => call.send({ podSandboxes: part })),
    async UpdatePodSandboxResources({ podSandboxId }) {
      // The kubelet has set the pod's cgroup before it calls; nothing else hangs on it here.
      await runtime.podSandboxStatus(await ids.sandbox(podSandboxId));
      return {};
    },

    async CreateContainer({ podSandboxId, config }, { signal }) {
      const sandbox = await ids.sandbox(podSandboxId);
      return { containerId: await runtime.createContainer(sandbox, containerConfigOf(config), signal) };
    },
    async StartContainer({ containerId }, { signal }) {
      await runtime.startContainer(await ids.container(containerId), signal);
      return {};
    },
    async StopContainer({ containerId, timeout }, { signal }) {
      const grace = millisecondsOf(timeout, 'timeout');
      await runtime.stopContainer(await ids.container(containerId), grace, signal);
      return {};
    },
    async RemoveContainer({ containerId }, { signal }) {
      await runtime.removeContainer(await ids.container(containerId), signal);
      return {};
    },
    ListContainers: async ({ filter }) => ({ containers: await listContainers(filter) }),
    StreamContainers: async ({ filter }, call) =>
      sendInParts('Container', await listContainers(filter), (part) => call.send({ containers: part })),
    async ContainerStatus({ containerId, verbose }) {
      const id = await ids.container(containerId);
      return {
        status: containerStatusTo(await runtime.containerStatus(id)),
        info: verbose ? infoOf({ info: await runtime.containerInfo(id) }) : {},
      };
    },
    async UpdateContainerResources({ containerId, linux }, { signal }) {
      const resources = resourcesOf(given(linux, 'linux'));
      await runtime.updateContainerResources(await ids.container(containerId), resources, signal);
      return {};
    },
    async ReopenContainerLog({ containerId }, { signal }) {
      await runtime.reopenContainerLog(await ids.container(containerId), signal);
      return {};
    },

    async ExecSync({ containerId, cmd, timeout }, { signal }) {
      const id = await ids.container(containerId);
      return execResultTo(await runtime.execSync(id, cmd, millisecondsOf(timeout, 'timeout'), signal));
    },
    async Exec({ containerId, cmd, ...streams }) {
      return {
        url: await streaming.exec({
          containerId: await ids.container(containerId),
          command: cmd,
          ...streams,
        }),
      };
    },
    async Attach({ containerId, ...streams }) {
      return { url: await streaming.attach({ containerId: await ids.container(containerId), ...streams }) };
    },
    async PortForward({ podSandboxId, port }) {
      return {
        url: await streaming.portForward({ podSandboxId: await ids.sandbox(podSandboxId), ports: port }),
      };
    },

    async ContainerStats({ containerId }, { signal }) {
      return {
        stats: containerStatsTo(await runtime.containerStats(await ids.container(containerId), signal)),
      };
    },
    ListContainerStats: async ({ filter }, { signal }) => ({ stats: await containerStats(filter, signal) }),
    StreamContainerStats: async ({ filter }, call) =>
      sendInParts('ContainerStats', await containerStats(filter, call.signal), (part) =>
        call.send({ containerStats: part }),
      ),
    async PodSandboxStats({ podSandboxId }, { signal }) {
      return {
        stats: sandboxStatsTo(await runtime.podSandboxStats(await ids.sandbox(podSandboxId), signal)),
      };
    },
    ListPodSandboxStats: async ({ filter }, { signal }) => ({ stats: await sandboxStats(filter, signal) }),
    StreamPodSandboxStats: async ({ filter }, call) =>
      sendInParts('PodSandboxStats', await sandboxStats(filter, call.signal), (part) =>
        call.send({ podSandboxStats: part }),
      ),
    ListMetricDescriptors: async () => ({ descriptors: await runtime.metricDescriptors() }),
    ListPodSandboxMetrics: async (_request, { signal }) => ({ podMetrics: await metrics(signal) }),
    StreamPodSandboxMetrics: async (_request, call) =>
      sendInParts('PodSandboxMetrics', await metrics(call.signal), (part) =>
        call.send({ podSandboxMetrics: part }),
      ),
    GetContainerEvents: (_request, call) => sendEvents(runtime, call),

    async CheckpointContainer({ containerId, location, timeout }, { signal }) {
      const limit = millisecondsOf(timeout, 'timeout');
      await runtime.checkpointContainer(await ids.container(containerId), location, limit, signal);
      return {};
    },
    CheckpointPod: unimplemented('pods cannot be checkpointed'),
    RestorePod: unimplemented('pods cannot be restored from a checkpoint'),
  };
}
