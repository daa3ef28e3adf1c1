/** runtime.v1.RuntimeService of another runtime as the RuntimeService of runtime/api.ts. */
import type { ContainerState, RuntimeService, SandboxState } from '../../api.ts';
import { isError, KeelsonError } from '../../host/errors.ts';
import { containerStates, nameOf, sandboxStates } from '../names.ts';
import { resourcesTo } from '../to_wire.ts';
import {
  answered,
  conditionsOf,
  containerOf,
  containerStatusOf,
  execResultOf,
  featuresOf,
  handlersOf,
  sandboxOf,
  sandboxStatusOf,
} from './answers.ts';
import type { Answer, Channel } from './channel.ts';
import { containerConfigTo, sandboxConfigTo, secondsTo } from './requests.ts';
import { remembered, withMemory, withoutMemory } from './sandbox_memory.ts';
import { makeRemoteStats, type RemoteStats } from './stats.ts';
import { makeRemoteStreams } from './streams.ts';

export type RemoteRuntime = Omit<RuntimeService, 'containerEvents'> & RemoteStats;

/** `timeoutMs`: of every call, besides what the call itself is told to wait; of a sandbox twice as long, as with kubelet. */
export function makeRemoteRuntime({ call }: Channel, timeoutMs: number): RemoteRuntime {
  /** Of each container that was made or listed: its status does not say which sandbox it is in. */
  const sandboxOfContainer = new Map<string, string>();
  const within = (signal?: AbortSignal) => ({ deadlineMs: timeoutMs, signal });

  const listSandboxes = async (filter?: Parameters<RuntimeService['listPodSandbox']>[0]) => {
    const { id, state, labels } = filter ?? {};
    const wanted = {
      id,
      state: state && { state: nameOf<keyof typeof sandboxStates, SandboxState>(sandboxStates, state) },
      labelSelector: labels,
    };
    return (await call('ListPodSandbox', { filter: wanted }, within())).items.map(sandboxOf);
  };
  const listContainers: RuntimeService['listContainers'] = async (filter) => {
    const { id, podSandboxId, state, labels } = filter ?? {};
    const wanted = {
      id,
      podSandboxId,
      state: state && { state: nameOf<keyof typeof containerStates, ContainerState>(containerStates, state) },
      labelSelector: labels,
    };
    const { containers } = await call('ListContainers', { filter: wanted }, within());
    if (filter === undefined) sandboxOfContainer.clear();
    for (const container of containers) sandboxOfContainer.set(container.id, container.podSandboxId);
    return containers.map(containerOf);
  };
  const sandboxIdOf = async (id: string): Promise<string> => {
    const known = sandboxOfContainer.get(id) ?? (await listContainers({ id }))[0]?.podSandboxId;
    if (known === undefined) throw new KeelsonError('NOT_FOUND', `there is no container ${id}`);
    return known;
  };
  /** The specification wants success where there is nothing any more; not all runtimes know. */
  const orGone = async (work: Promise<unknown>) => {
    try {
      await work;
    } catch (error) {
      if (!isError(error, 'NOT_FOUND')) throw error;
    }
  };
  /** One answer for all that ask at the same time: the status says it all. */
  let asking: Promise<Answer<'Status'>> | undefined;
  const status = () => {
    asking ??= call('Status', {}, within()).finally(() => {
      asking = undefined;
    });
    return asking;
  };
  return {
    async version() {
      const { runtimeName, runtimeVersion } = await call('Version', {}, within());
      return { runtimeName, runtimeVersion };
    },
    status: async () => conditionsOf(await status()),
    handlers: async () => handlersOf(await status()),
    features: async () => featuresOf(await status()),

    async runPodSandbox(config, runtimeHandler, signal) {
      const request = { config: sandboxConfigTo(withMemory(config)), runtimeHandler };
      return (await call('RunPodSandbox', request, { deadlineMs: 2 * timeoutMs, signal })).podSandboxId;
    },
    stopPodSandbox: (id, signal) => orGone(call('StopPodSandbox', { podSandboxId: id }, within(signal))),
    removePodSandbox: (id, signal) => orGone(call('RemovePodSandbox', { podSandboxId: id }, within(signal))),
    async podSandboxStatus(id) {
      const { status } = await call('PodSandboxStatus', { podSandboxId: id }, within());
      return withoutMemory(sandboxStatusOf(answered(status, 'status')));
    },
    listPodSandbox: async (filter) => (await listSandboxes(filter)).map(withoutMemory),

    async createContainer(sandboxId, config, signal) {
      const [sandbox] = await listSandboxes({ id: sandboxId });
      if (sandbox === undefined) throw new KeelsonError('NOT_FOUND', `there is no sandbox ${sandboxId}`);
      const ofSandbox = remembered(sandbox);
      if (ofSandbox === undefined) {
        throw new KeelsonError('FAILED_PRECONDITION', `sandbox ${sandboxId} was made by somebody else`);
      }
      const request = {
        podSandboxId: sandboxId,
        config: containerConfigTo(config),
        sandboxConfig: sandboxConfigTo(ofSandbox),
      };
      const { containerId } = await call('CreateContainer', request, within(signal));
      sandboxOfContainer.set(containerId, sandboxId);
      return containerId;
    },
    async startContainer(id, signal) {
      await call('StartContainer', { containerId: id }, within(signal));
    },
    async stopContainer(id, timeout, signal) {
      const request = { containerId: id, timeout: secondsTo(timeout) };
      await orGone(call('StopContainer', request, { deadlineMs: timeout + timeoutMs, signal }));
    },
    async removeContainer(id, signal) {
      await orGone(call('RemoveContainer', { containerId: id }, within(signal)));
      sandboxOfContainer.delete(id);
    },
    listContainers,
    async containerStatus(id) {
      const { status } = await call('ContainerStatus', { containerId: id }, within());
      return containerStatusOf(answered(status, 'status'), await sandboxIdOf(id));
    },
    async updateContainerResources(id, resources, signal) {
      const request = { containerId: id, linux: resourcesTo(resources) };
      await call('UpdateContainerResources', request, within(signal));
    },
    async checkpointContainer(id, location, timeout, signal) {
      const request = { containerId: id, location, timeout: secondsTo(timeout) };
      // The other side's own default is two minutes.
      await call('CheckpointContainer', request, { deadlineMs: (timeout || 120_000) + timeoutMs, signal });
    },
    async reopenContainerLog(id, signal) {
      await call('ReopenContainerLog', { containerId: id }, within(signal));
    },

    async execSync(id, command, timeout, signal) {
      const request = { containerId: id, cmd: command, timeout: secondsTo(timeout) };
      const deadlineMs = timeout === 0 ? undefined : timeout + timeoutMs;
      return execResultOf(await call('ExecSync', request, { deadlineMs, signal }));
    },
    ...makeRemoteStreams(call, within),
    ...makeRemoteStats(call, within, sandboxIdOf),
  };
}
