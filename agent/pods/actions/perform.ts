/** Doing one action of a plan. What goes wrong becomes memory, so that the next plan knows. */
import { readFile } from 'node:fs/promises';
import { describe, isError, KeelsonError, reasonOf } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import type { Action } from '../plan/actions.ts';
import {
  type BackoffSettings,
  containerBackoff,
  type Failure,
  failedAgain,
  sandboxBackoff,
  volumeBackoff,
} from '../plan/backoff.ts';
import { without } from '../plan/memory.ts';
import { podHugepages } from '../resources/kernel_limits.ts';
import { everyContainer, formatPod, uidOf } from '../spec/pod.ts';
import { podCgroup, podCgroupResources } from '../spec/qos.ts';
import { hasOwnUsers, makeSandboxConfig, parseResolvConf, podDns } from '../spec/sandbox_config.ts';
import { withUsedVolumes } from '../spec/used_volumes.ts';
import { erase, removeContainer, removeSandbox } from './cleanup.ts';
import { type ActionContext, interrupted, type MemoryUpdate, tell } from './context.ts';
import { ensureImage } from './pull.ts';
import { createContainer, startContainer } from './start.ts';
import { preStop, stopContainer } from './stop.ts';

/** Milliseconds after which an action is given up, by kind; stops get their own grace on top. */
const deadlines: Readonly<Record<Action['kind'], number>> = {
  cgroup: 30_000,
  volumes: 120_000,
  sandbox: 240_000,
  image: 7_200_000,
  create: 120_000,
  // A postStart hook may take its time.
  start: 3_600_000,
  stop: 120_000,
  preStop: 120_000,
  stopSandbox: 120_000,
  removeSandbox: 180_000,
  removeContainer: 60_000,
  tearDown: 120_000,
  erase: 60_000,
  resize: 60_000,
  resized: 10_000,
  note: 0,
};

export function deadlineMs(action: Action, now: number): number {
  return deadlines[action.kind] + ('deadline' in action ? Math.max(0, action.deadline - now) : 0);
}

/**
 * Does it. Throws only when `context.signal` aborted it; other failures are in the memory update that it returns.
 * `again`: the action was interrupted before and is asked for anew.
 */
export async function perform(action: Action, context: ActionContext, again: boolean): Promise<MemoryUpdate> {
  const named = (name: string): PodContainer => {
    const found = everyContainer(context.pod).find((container) => container.name === name);
    if (found !== undefined) return found;
    throw new KeelsonError('NOT_FOUND', `the pod has no container ${name}`);
  };
  switch (action.kind) {
    case 'cgroup':
      return makeCgroup(context);
    case 'volumes':
      return setUpVolumes(context);
    case 'sandbox':
      return runSandbox(context, action.attempt);
    case 'image':
      return ensureImage(context, named(action.container), action.attempt);
    case 'create':
      return createContainer(
        context,
        named(action.container),
        action.attempt,
        action.sandboxId,
        action.imageId,
      );
    case 'start':
      return startContainer(context, named(action.container), action.id);
    case 'stop':
      return step(context, action.key, () =>
        stopContainer(
          context,
          action.container,
          action.id,
          action.deadline,
          action.message,
          again,
          action.bare,
        ),
      );
    case 'preStop':
      await preStop(context, named(action.container), action.id, action.deadline);
      return (memory) => ({ ...memory, hooked: [...memory.hooked, action.id] });
    case 'stopSandbox': {
      const stopped = await step(context, action.key, () =>
        context.runtime.stopPodSandbox(action.id, context.signal),
      );
      return (memory) => {
        const after = stopped(memory);
        return action.key in after.teardownFailures
          ? after
          : { ...after, stoppedSandboxes: [...after.stoppedSandboxes, action.id] };
      };
    }
    case 'removeSandbox':
      return step(context, action.key, () => removeSandbox(context, action.id));
    case 'removeContainer':
      return step(context, action.key, () => removeContainer(context, action.id, action.keepLogs));
    case 'tearDown': {
      const done = await step(context, action.key, () =>
        context.volumes.tearDown(uidOf(context.pod), context.signal),
      );
      return (memory) => {
        const after = done(memory);
        return action.key in after.teardownFailures ? after : { ...after, volumes: 'gone' };
      };
    }
    case 'erase': {
      const done = await step(context, action.key, () => erase(context));
      return (memory) => {
        const after = done(memory);
        return action.key in after.teardownFailures ? after : { ...after, erased: true };
      };
    }
    case 'resize':
      return (await import('../resources/actuate.ts')).resizePod(context, action.generation);
    case 'resized':
      return (await import('../resources/actuate.ts')).resizeCompleted(context, action.generation);
    case 'note':
      tell(context, action.container, action.type, action.reason, action.message);
      return (memory) => ({ ...memory, noted: { ...memory.noted, [action.key]: action.occasion } });
  }
}

/** A step of taking down: a failure is told, remembered and tried again later. */
async function step(context: ActionContext, key: string, body: () => Promise<void>): Promise<MemoryUpdate> {
  try {
    await body();
    return (memory) => ({ ...memory, teardownFailures: without(memory.teardownFailures, key) });
  } catch (error) {
    if (interrupted(context)) throw error;
    context.log.warn({ err: error, pod: context.pod.metadata?.name, step: key }, 'cannot take the pod down');
    tell(context, undefined, 'Warning', 'FailedKillPod', `error killing pod: ${describe(error)}`);
    const now = context.clock.now();
    return (memory) => ({
      ...memory,
      teardownFailures: {
        ...memory.teardownFailures,
        [key]: failedAgain(
          memory.teardownFailures[key],
          'FailedKillPod',
          describe(error),
          now,
          containerBackoff,
        ),
      },
    });
  }
}

type FailureField = 'cgroupFailure' | 'volumesFailure' | 'sandboxFailure';

function remember(
  context: ActionContext,
  field: FailureField,
  reason: string,
  error: unknown,
  settings: BackoffSettings,
): MemoryUpdate {
  const now = context.clock.now();
  return (memory) => {
    const failure: Failure = failedAgain(memory[field], reason, describe(error), now, settings);
    return { ...memory, [field]: failure };
  };
}

async function makeCgroup(context: ActionContext): Promise<MemoryUpdate> {
  const { pod, config, cgroups } = context;
  try {
    await cgroups?.ensure(podCgroup(pod, config.cgroup).path, {
      ...podCgroupResources(pod, config.cgroup),
      ...podHugepages(pod, config.kernel),
    });
  } catch (error) {
    tell(
      context,
      undefined,
      'Warning',
      'FailedCreatePodContainer',
      `unable to ensure pod container exists: ${describe(error)}`,
    );
    return remember(context, 'cgroupFailure', 'FailedCreatePodContainer', error, sandboxBackoff);
  }
  context.stage('cgroup');
  return (memory) => ({ ...memory, cgroupReady: true, cgroupFailure: undefined });
}

/** One for each volume that failed. */
function messagesOf(error: unknown): readonly string[] {
  const messages = isError(error) ? error.details['messages'] : undefined;
  return Array.isArray(messages) ? (messages as string[]) : [describe(error)];
}

async function setUpVolumes(context: ActionContext): Promise<MemoryUpdate> {
  const { pod, volumes, signal, clock } = context;
  try {
    context.setReady(await volumes.setUp(withUsedVolumes(pod), signal));
  } catch (error) {
    if (interrupted(context)) throw error;
    for (const message of messagesOf(error))
      tell(context, undefined, 'Warning', reasonOf(error, 'FailedMount'), message);
    const failed = remember(context, 'volumesFailure', 'FailedMount', error, volumeBackoff);
    const now = clock.now();
    return (memory) => {
      if (memory.volumes !== 'ready') return failed(memory);
      // Running containers keep what they have; only the refresh is late.
      return { ...memory, refreshAt: now + volumeBackoff.maxMs };
    };
  }
  context.stage('volumes');
  const refresh = volumes.refreshAfterMs(pod);
  const refreshAt = refresh === undefined ? undefined : clock.now() + refresh;
  return (memory) => ({ ...memory, volumes: 'ready', volumesFailure: undefined, refreshAt });
}

async function runSandbox(context: ActionContext, attempt: number): Promise<MemoryUpdate> {
  const { pod, config, signal, runtime } = context;
  context.stage('sandboxStart');
  try {
    const host = config.resolvConf === '' ? '' : await readFile(config.resolvConf, 'utf8').catch(() => '');
    const { dns, warnings, missing } = podDns(pod, {
      clusterDns: config.clusterDns,
      clusterDomain: config.clusterDomain,
      host: parseResolvConf(host),
    });
    for (const warning of warnings) tell(context, undefined, 'Warning', 'DNSConfigForming', warning);
    if (missing !== undefined) {
      tell(context, undefined, 'Warning', 'MissingClusterDNS', `pod: "${formatPod(pod)}". ${missing}`);
      const node = { apiVersion: 'v1', kind: 'Node', metadata: { name: context.nodeName } };
      context.events.event(node, 'Warning', 'MissingClusterDNS', missing);
    }
    const handler = await context.handlers.named(pod.spec?.runtimeClassName, signal);
    const users = await ownUsers(context, handler);
    const sandbox = makeSandboxConfig(pod, attempt, dns, {
      podLogsDir: config.podLogsDir,
      clusterDomain: config.clusterDomain,
      cgroupParent: podCgroup(pod, config.cgroup).parent,
      sysctls: config.defaultSysctls,
      ...(users === undefined ? {} : { users }),
    });
    await runtime.runPodSandbox(sandbox, handler, signal);
  } catch (error) {
    if (interrupted(context)) throw error;
    const reason = reasonOf(error, 'FailedCreatePodSandBox');
    const told = reason === 'NetworkNotReady' ? reason : 'FailedCreatePodSandBox';
    const what = told === 'NetworkNotReady' ? 'network is not ready' : 'Failed to create pod sandbox';
    tell(context, undefined, 'Warning', told, `${what}: ${describe(error)}`);
    return remember(context, 'sandboxFailure', told, error, sandboxBackoff);
  }
  context.stage('sandbox');
  return (memory) => ({ ...memory, sandboxFailure: undefined });
}

/** The ids of a pod with a user namespace of its own. Throws FAILED_PRECONDITION where its handler can make none. */
async function ownUsers({ pod, handlers, userIds }: ActionContext, handler: string) {
  if (!hasOwnUsers(pod)) return undefined;
  if ((await handlers.features(handler))?.userNamespaces === true) return userIds.of(uidOf(pod));
  const who = handler === '' ? 'runtime' : `RuntimeClass handler "${handler}"`;
  throw new KeelsonError(
    'FAILED_PRECONDITION',
    `can't set \`spec.hostUsers: false\`, ${who} does not support user namespaces`,
    { hint: 'id-mapped mounts need runc 1.2 or crun 1.9, and Linux 6.3' },
  );
}
