/**
 * What pods have on disk, for their limits. One du(1) looks at the folders of all pods together: what it walks costs the
 * agent nothing. What containers wrote over their images the runtime knows.
 */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import type { RuntimeStats } from '../../../runtime/api.ts';
import { exec } from '../../../runtime/host/exec.ts';
import type { Pod } from '../../apiserver/types.ts';
import { labelNames, podLogFolder, uidOf } from '../spec/pod.ts';
import { hasContainerLimits, isOnDisk, limitedEmptyDirs, type StorageUse } from './storage_limits.ts';

export interface StorageUseOptions {
  readonly runtime: Pick<RuntimeStats, 'listContainerStats'>;
  readonly kubeletDir: string;
  readonly podLogsDir: string;
}

/** Milliseconds for one look at all of them: disks may be slow and volumes full of files. */
const walkMs = 10 * 60_000;

/** Volumes of the node's own storage that take room beside emptyDir. */
const smallKinds = ['kubernetes.io~configmap', 'kubernetes.io~downward-api'];

/**
 * What each pod with limits has, by uid. Only what its limits need is looked at. Throws EXEC_NOT_FOUND where there is no
 * du, DEADLINE_EXCEEDED, ABORTED, and what the runtime throws.
 */
export async function measureStorage(
  pods: readonly Pod[],
  options: StorageUseOptions,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, StorageUse>> {
  const asked = pods.map((pod) => ({ pod, paths: pathsOf(pod, options) }));
  const bytes = await diskUsage(
    asked.flatMap(({ paths }) =>
      [...paths.emptyDirs, ...paths.logs, ...paths.others].map(({ path }) => path),
    ),
    signal,
  );
  const uses = await Promise.all(
    asked.map(async ({ pod, paths }) => {
      const of = (list: readonly Place[]) =>
        new Map(list.map(({ name, path }) => [name, bytes.get(path) ?? 0]));
      const [emptyDirs, logs, others] = [of(paths.emptyDirs), of(paths.logs), of(paths.others)];
      const written = hasContainerLimits(pod)
        ? await writtenBy(pod, options, signal)
        : new Map<string, number>();
      const containers = new Map(
        [...new Set([...logs.keys(), ...written.keys()])].map((name) => [
          name,
          (logs.get(name) ?? 0) + (written.get(name) ?? 0),
        ]),
      );
      const total = [emptyDirs, others, containers]
        .flatMap((part) => [...part.values()])
        .reduce((sum, part) => sum + part, 0);
      return [uidOf(pod), { emptyDirs, containers, logs, total }] as const;
    }),
  );
  return new Map(uses);
}

interface Place {
  readonly name: string;
  readonly path: string;
}

function pathsOf(
  pod: Pod,
  { kubeletDir, podLogsDir }: StorageUseOptions,
): { emptyDirs: Place[]; logs: Place[]; others: Place[] } {
  const volumes = join(kubeletDir, 'pods', uidOf(pod), 'volumes');
  const whole = hasContainerLimits(pod);
  const names = whole
    ? (pod.spec?.volumes ?? []).filter(({ emptyDir }) => isOnDisk(emptyDir)).map(({ name }) => name)
    : limitedEmptyDirs(pod).map(({ name }) => name);
  const emptyDirs = names.map((name) => ({ name, path: join(volumes, 'kubernetes.io~empty-dir', name) }));
  if (!whole) return { emptyDirs, logs: [], others: [] };
  const { initContainers = [], containers = [], ephemeralContainers = [] } = pod.spec ?? {};
  return {
    emptyDirs,
    logs: [...initContainers, ...containers, ...ephemeralContainers].map(({ name }) => ({
      name,
      path: join(podLogFolder(podLogsDir, pod), name),
    })),
    others: smallKinds.map((kind) => ({ name: kind, path: join(volumes, kind) })),
  };
}

/** Bytes on disk at and below each path, on its own file system; those that are not there are left out. */
export async function diskUsage(
  paths: readonly string[],
  signal: AbortSignal,
): Promise<ReadonlyMap<string, number>> {
  if (paths.length === 0) return new Map();
  // du complains of what is not there, and of what goes away while it looks: no reason to know nothing of the others.
  const { stdout } = await exec(
    'du',
    ['--summarize', '--one-file-system', '--block-size=1', '--null', '--files0-from=-'],
    {
      input: paths.map((path) => `${path}\0`).join(''),
      deadlineMs: walkMs,
      okCodes: 'any',
      onOverflow: 'discard',
      maxOutput: 64 << 20,
      signal,
    },
  );
  const rows = stdout.toString('utf8').split('\0').filter(Boolean);
  return new Map(
    rows.map((row) => {
      const [size = '0', ...rest] = row.split('\t');
      return [rest.join('\t'), Number(size)];
    }),
  );
}

async function writtenBy(
  pod: Pod,
  { runtime }: StorageUseOptions,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, number>> {
  const stats = await runtime.listContainerStats({ labels: { [labelNames.podUid]: uidOf(pod) } }, signal);
  return new Map(stats.map(({ metadata, writableLayer }) => [metadata.name, writableLayer?.usedBytes ?? 0]));
}

/** Whether images are on another file system than the pods' volumes; then what containers write is not the pods' room. */
export async function areApart(one: string, other: string): Promise<boolean> {
  const [a, b] = await Promise.all([stat(one), stat(other)]);
  return a.dev !== b.dev;
}
