/** The volumes of pods: which kinds there are, made side by side, kept up to date, and taken away. */
import { chmod, mkdir, readdir, readFile, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import { abortError, describe, errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { keyedQueue } from '../../runtime/host/keyed.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { ApiserverClient, ObjectCache, Pod, Volume } from '../apiserver/types.ts';
import { isWritten, writeAtomically } from './atomic.ts';
import { makeEmptyDir } from './emptydir.ts';
import { checkHostPath } from './hostpath.ts';
import { isMountPoint, mountTmpfs, unmountBelow } from './mounts.ts';
import { nestedMountPoints } from './nested.ts';
import { makePatience } from './patience.ts';
import { type Collected, collect, tokenKey } from './sources.ts';
import { removeBelow } from './teardown.ts';
import { makeTokens } from './tokens.ts';
import type { ReadyVolume, VolumeManager } from './types.ts';

export interface VolumesOptions {
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  /** Absent where there is no apiserver: then volumes that need one fail. */
  readonly client?: ApiserverClient;
  readonly objects: ObjectCache;
  readonly nodeName: string;
  readonly log: Logger;
  readonly clock: Clock;
  /** The node's allocatable resources, for downward API files. Default: none known. */
  readonly allocatable?: () => Readonly<Record<string, string>>;
  /** From 0 to 1, spreads refreshes. Default Math.random. */
  readonly random?: () => number;
}

/** The volumes made of files that are written in one step, with their folders below `volumes/`. */
const atomicKinds = {
  configMap: 'kubernetes.io~configmap',
  secret: 'kubernetes.io~secret',
  downwardAPI: 'kubernetes.io~downward-api',
  projected: 'kubernetes.io~projected',
} as const;
type AtomicKind = keyof typeof atomicKinds;

/** How often objects that may change are looked at; kubelet takes 60 to 90 s. */
const refreshMs = 60_000;
const retryMs = 30_000;

export function makeVolumes(options: VolumesOptions): VolumeManager {
  const { objects, clock, log, random = Math.random, allocatable = () => ({}) } = options;
  const podsDir = join(options.kubeletDir, 'pods');
  const tokens = makeTokens({ client: options.client, clock, log, random });
  const queue = keyedQueue();
  const patience = makePatience({ clock });
  /** When `setUp` is due again, monotonic; by pod uid. */
  const dueAt = new Map<string, number>();

  /** The folder of a volume below that of its pod, with the folder of its kind made. */
  const place = async (uid: string, kind: string, name: string): Promise<string> => {
    const parent = join(podsDir, uid, 'volumes', kind);
    await mkdir(parent, { recursive: true, mode: 0o750 });
    return join(parent, name);
  };

  const setUpAtomic = async (
    pod: Pod,
    volume: Volume,
    kind: AtomicKind,
    signal: AbortSignal | undefined,
  ): Promise<{ folder: string; due: number | undefined }> => {
    const folder = await place(pod.metadata!.uid!, atomicKinds[kind], volume.name);
    await makeFolder(folder, kind);
    await adoptTokens(pod, volume, folder);
    let collected: Collected;
    try {
      collected = await collect(pod, volume, { objects, tokens, allocatable }, signal);
    } catch (error) {
      if (signal?.aborted || !(await isWritten(folder))) throw error;
      log.warn(
        { err: error, pod: pod.metadata?.name, namespace: pod.metadata?.namespace, volume: volume.name },
        'cannot refresh a volume; what it holds is kept',
      );
      return { folder, due: clock.monotonic() + retryMs * (1 + random()) };
    }
    for (const inner of nestedMountPoints(pod, volume.name)) {
      await mkdir(join(folder, inner), { recursive: true });
    }
    await writeAtomically(folder, collected.payload, {
      now: clock.now(),
      fsGroup: pod.spec?.securityContext?.fsGroup,
    });
    const waits = [
      ...(collected.mayChange ? [refreshMs * (1 + random() / 2)] : []),
      ...(collected.renewAt === undefined ? [] : [Math.max(0, collected.renewAt - clock.now())]),
    ];
    return { folder, due: waits.length === 0 ? undefined : clock.monotonic() + Math.min(...waits) };
  };

  /** A process that starts again finds the tokens of its pods in their volumes, and need not ask for new ones. */
  const adoptTokens = async (pod: Pod, volume: Volume, folder: string): Promise<void> => {
    if (dueAt.has(pod.metadata!.uid!)) return;
    for (const { serviceAccountToken } of volume.projected?.sources ?? []) {
      if (!serviceAccountToken) continue;
      const text = await readFile(join(folder, '..data', serviceAccountToken.path), 'utf8').catch(
        () => undefined,
      );
      if (text !== undefined) tokens.adopt(tokenKey(pod, serviceAccountToken), text);
    }
  };

  const setUpOne = async (
    pod: Pod,
    volume: Volume,
    signal: AbortSignal | undefined,
  ): Promise<{ ready: ReadyVolume; due?: number }> => {
    const { name, hostPath, emptyDir } = volume;
    if (hostPath) {
      await patience.ask(hostPath.path, () => checkHostPath(hostPath.path, hostPath.type), signal);
      return { ready: { name, hostPath: hostPath.path, readOnly: false } };
    }
    for (const kind of Object.keys(atomicKinds) as AtomicKind[]) {
      if (!volume[kind]) continue;
      const { folder, due } = await setUpAtomic(pod, volume, kind, signal);
      return { ready: { name, hostPath: folder, readOnly: true }, due };
    }
    const kinds = Object.keys(volume).filter((key) => key !== 'name' && key !== 'emptyDir');
    if (kinds.length > 0) {
      throw new KeelsonError('VOLUME_FAILED', `keelson does not support ${kinds.join(', ')} volumes yet`);
    }
    const folder = await place(pod.metadata!.uid!, 'kubernetes.io~empty-dir', name);
    await makeEmptyDir(folder, emptyDir ?? {}, pod);
    return { ready: { name, hostPath: folder, readOnly: false } };
  };

  return {
    setUp(pod, signal) {
      const uid = uidOf(pod.metadata?.uid);
      return queue.run(uid, async () => {
        if (signal?.aborted) throw abortError(signal, 'setting up volumes');
        const volumes = pod.spec?.volumes ?? [];
        for (const { name } of volumes) checkName(name);
        const results = await Promise.allSettled(volumes.map((volume) => setUpOne(pod, volume, signal)));
        if (signal?.aborted) throw abortError(signal, 'setting up volumes');
        const failed = results.flatMap((result, index) =>
          result.status === 'rejected'
            ? [{ name: volumes[index]!.name, cause: result.reason as unknown }]
            : [],
        );
        if (failed.length > 0) throw failureOf(failed);
        const done = results.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []));
        const dues = done.map(({ due }) => due).filter((due) => due !== undefined);
        dueAt.set(uid, Math.min(Number.POSITIVE_INFINITY, ...dues));
        return new Map(done.map(({ ready }) => [ready.name, ready]));
      });
    },

    refreshAfterMs(pod) {
      const due = dueAt.get(pod.metadata?.uid ?? '');
      if (due === undefined || due === Number.POSITIVE_INFINITY) return undefined;
      return Math.max(0, due - clock.monotonic());
    },

    tearDown(podUid, signal) {
      const uid = uidOf(podUid);
      return queue.run(uid, async () => {
        dueAt.delete(uid);
        tokens.forget(uid);
        let real: string;
        try {
          real = await realpath(podsDir);
        } catch (error) {
          if (errnoOf(error) === 'ENOENT') return;
          throw error;
        }
        try {
          await unmountBelow(join(real, uid));
          await removeBelow(real, uid, signal);
        } catch (error) {
          if (isError(error)) throw error;
          throw new KeelsonError('VOLUME_FAILED', `cannot remove the folder of pod ${uid}`, { cause: error });
        }
      });
    },

    async podsOnDisk() {
      try {
        const entries = await readdir(podsDir, { withFileTypes: true });
        return entries.filter((entry) => entry.isDirectory() && isName(entry.name)).map(({ name }) => name);
      } catch (error) {
        if (errnoOf(error) === 'ENOENT') return [];
        throw error;
      }
    },
  };
}

/** Secrets and tokens never touch a disk; the others are folders. */
async function makeFolder(folder: string, kind: AtomicKind): Promise<void> {
  const isNew = (await mkdir(folder, { recursive: true })) !== undefined;
  if (kind === 'secret' || kind === 'projected') {
    if (!(await isMountPoint(folder))) mountTmpfs(folder, ['mode=0777']);
  } else if (isNew) {
    await chmod(folder, 0o777);
  }
}

/** kubelet's words, so that people and their alerts find what they know. */
function failureOf(failed: readonly { name: string; cause: unknown }[]): KeelsonError {
  const text = failed
    .map(({ name, cause }) => `MountVolume.SetUp failed for volume "${name}" : ${describe(cause)}`)
    .join('; ');
  return new KeelsonError('VOLUME_FAILED', text, {
    details: { volumes: failed.map(({ name }) => name) },
  });
}

/** Names become parts of paths. */
function isName(name: string): boolean {
  return /^[A-Za-z0-9][A-Za-z0-9._-]{0,252}$/.test(name);
}

function uidOf(uid: string | undefined): string {
  if (uid !== undefined && isName(uid)) return uid;
  throw new KeelsonError('POD_INVALID', `${JSON.stringify(uid ?? null)} cannot be the uid of a pod`);
}

function checkName(name: string): void {
  if (!isName(name)) throw new KeelsonError('POD_INVALID', `${JSON.stringify(name)} cannot name a volume`);
}
