/** What is on the node of pods that no source knows: found, and taken down, when all sources have told all they have. */
import type { Container, PodSandbox, RuntimeService } from '../../runtime/api.ts';
import type { Cgroups } from '../../runtime/host/cgroups.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { listFolder } from '../../runtime/host/files.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { Pod } from '../apiserver/types.ts';
import { removeDeadLinks } from '../logs/links.ts';
import type { VolumeManager } from '../volumes/types.ts';
import { annotationNames, formatPod, labelNames, uidOf } from './spec/pod.ts';
import { type CgroupSettings, podCgroupParents, uidOfCgroup } from './spec/qos.ts';

/**
 * Stand-ins for the pods whose sandboxes, containers, folders, logs or cgroups are found and whose uid is not `known`.
 * Sandboxes without kubelet's labels were made by somebody else and are left alone.
 */
export async function findOrphans(
  places: {
    readonly runtime: RuntimeService;
    readonly volumes: VolumeManager;
    readonly cgroups?: Pick<Cgroups, 'children'>;
    readonly config: { readonly podLogsDir: string; readonly cgroup: CgroupSettings };
  },
  known: (uid: string) => boolean,
): Promise<Pod[]> {
  const { runtime, volumes, cgroups, config } = places;
  const groupsBelow = async (path: string) => (await cgroups?.children(path)) ?? [];
  const [sandboxes, containers, onDisk, logs, groups] = await Promise.all([
    runtime.listPodSandbox(),
    runtime.listContainers(),
    volumes.podsOnDisk(),
    listFolder(config.podLogsDir),
    Promise.all(podCgroupParents(config.cgroup).map(groupsBelow)),
  ]);
  const logUids = logs.flatMap((name) => {
    const parts = name.split('_');
    return parts.length === 3 && parts[2] !== '' ? [parts[2]!] : [];
  });
  const uids = new Set([
    ...[...sandboxes, ...containers].flatMap(({ labels }) => labels[labelNames.podUid] ?? []),
    ...onDisk,
    ...logUids,
    ...groups.flat().flatMap((name) => uidOfCgroup(name, config.cgroup) ?? []),
  ]);
  return [...uids].filter((uid) => !known(uid)).map((uid) => standIn(uid, sandboxes, containers));
}

/**
 * Of the remains, those of earlier pods of the same names as `pods`: manifests that were changed while the agent was
 * away. Only pods that were static themselves; the apiserver's are not known yet when static pods start.
 */
export async function findPredecessors(
  places: Parameters<typeof findOrphans>[0],
  pods: readonly Pod[],
  known: (uid: string) => boolean,
): Promise<Pod[]> {
  const fullName = ({ metadata }: Pod) => `${metadata?.namespace ?? 'default'}/${metadata?.name}`;
  const names = new Set(pods.map(fullName));
  const uids = new Set(pods.map(({ metadata }) => metadata?.uid));
  const orphans = await findOrphans(places, (uid) => known(uid) || uids.has(uid));
  const wanted = orphans.filter((orphan) => names.has(fullName(orphan)));
  if (wanted.length === 0) return [];
  const sandboxes = await places.runtime.listPodSandbox();
  const wasStatic = new Set(
    sandboxes
      .filter(({ annotations }) => annotations['kubernetes.io/config.hash'] !== undefined)
      .map(({ labels }) => labels[labelNames.podUid]),
  );
  return wanted.filter(({ metadata }) => wasStatic.has(metadata?.uid ?? ''));
}

function standIn(uid: string, sandboxes: readonly PodSandbox[], containers: readonly Container[]): Pod {
  const mine = (one: { readonly labels: Readonly<Record<string, string>> }) =>
    one.labels[labelNames.podUid] === uid;
  const own = containers.filter(mine);
  const labels = (sandboxes.find(mine) ?? own[0])?.labels ?? {};
  const grace = Number(own[0]?.annotations[annotationNames.grace]);
  // The hooks are in the annotations, so that a pod that went while the agent was down ends as it should.
  const named = new Map(own.map((container) => [container.metadata.name, container]));
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: labels[labelNames.podName] ?? uid,
      namespace: labels[labelNames.podNamespace] ?? 'default',
      uid,
    },
    spec: {
      terminationGracePeriodSeconds: Number.isFinite(grace) ? grace : 30,
      containers: [...named].map(([name, { image, annotations }]) => ({
        name,
        image,
        ...hookOf(annotations[annotationNames.preStop]),
      })),
    },
  };
}

function hookOf(annotation: string | undefined): object {
  if (annotation === undefined) return {};
  try {
    return { lifecycle: { preStop: JSON.parse(annotation) as object } };
  } catch {
    return {};
  }
}

type Places = Parameters<typeof findOrphans>[0];

export interface Remains {
  /** Of pods that no source knows, once all have told everything; tried again until it succeeds. */
  ofUnknown(): Promise<void>;
  /** Of earlier static pods that had the names of `pods`, which is asked when they are looked for. Never rejects. */
  ofEarlier(pods: () => readonly Pod[]): Promise<void>;
  close(): void;
}

export function makeRemains(
  options: Places & {
    readonly config: Places['config'] & { readonly containerLogsDir: string };
    readonly retryMs: number;
    readonly isKnown: (uid: string) => boolean;
    readonly takeDown: (remains: Pod) => void;
    /** All are found; they are not gone yet. */
    readonly onFound: () => void;
    readonly clock: Clock;
    readonly log: Logger;
  },
): Remains {
  const { runtime, config, retryMs, isKnown, takeDown, clock, log } = options;
  let closed = false;
  let cancel = () => {};

  async function ofUnknown(): Promise<void> {
    try {
      for (const pod of await findOrphans(options, isKnown)) {
        if (closed || isKnown(uidOf(pod))) continue;
        log.info({ pod: formatPod(pod) }, 'removing what is left of a pod that is not wanted any more');
        takeDown(pod);
      }
      options.onFound();
      const containers = new Set((await runtime.listContainers()).map(({ id }) => id));
      await removeDeadLinks(config.containerLogsDir, config.podLogsDir, containers);
    } catch (error) {
      log.warn({ err: error }, 'cannot look for what is left of unknown pods, trying again');
      if (!closed) cancel = clock.after(retryMs, () => void ofUnknown());
    }
  }

  return {
    ofUnknown,
    async ofEarlier(pods) {
      try {
        const before = await findPredecessors(options, pods(), isKnown);
        for (const pod of before) if (!closed && !isKnown(uidOf(pod))) takeDown(pod);
      } catch (error) {
        log.warn({ err: error }, 'cannot look for what is left of earlier static pods');
      }
    },
    close() {
      closed = true;
      cancel();
    },
  };
}
