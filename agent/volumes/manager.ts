/** The volumes of pods: which kinds there are, made side by side, kept up to date, and taken away. */
import { mkdir, readdir, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import { abortError, describe, errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { listFolder } from '../../runtime/host/files.ts';
import { keyedQueue } from '../../runtime/host/keyed.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { makePatience } from '../../runtime/host/mounts/patience.ts';
import type { ApiserverClient, ObjectCache, Pod, Volume } from '../apiserver/types.ts';
import type { Certificates } from './certificates/certificates.ts';
import { checkNode } from './claims/claim.ts';
import { makeClaims } from './claims/resolve.ts';
import { emptyDirKind } from './emptydir.ts';
import { hostPathKind } from './hostpath.ts';
import { filesKinds } from './kinds/files.ts';
import { makeGiving } from './kinds/giving.ts';
import { imageKind } from './kinds/image.ts';
import type { VolumeKind, VolumeSource } from './kinds/kind.ts';
import { localKind } from './kinds/local.ts';
import { nfsKind } from './kinds/nfs.ts';
import { unmountBelow } from './mounts.ts';
import { removeBelow } from './teardown.ts';
import { makeTokens } from './tokens.ts';
import type { Trust } from './trust/bundles.ts';
import type { ReadyVolume, VolumeManager } from './types.ts';

export interface VolumesOptions {
  /** Kinds beside those that are always there. */
  readonly kinds?: readonly VolumeKind[];
  /** The node's labels, which persistent volumes may ask for. Default: none known. */
  readonly nodeLabels?: () => Readonly<Record<string, string>>;
  /** A warning event about a pod. Default: nobody is told. */
  readonly warn?: (pod: Pod, reason: string, message: string) => void;
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  /** Absent where there is no apiserver: then volumes that need one fail. */
  readonly client?: ApiserverClient;
  /** Ends what is followed at the apiserver. */
  readonly ending?: AbortSignal;
  readonly objects: ObjectCache;
  readonly nodeName: string;
  readonly log: Logger;
  readonly clock: Clock;
  /** The node's allocatable resources, for downward API files. Default: none known. */
  readonly allocatable?: () => Readonly<Record<string, string>>;
  /** From 0 to 1, spreads refreshes. Default Math.random. */
  readonly random?: () => number;
}

export function makeVolumes(options: VolumesOptions): VolumeManager {
  const { clock, log, random = Math.random, allocatable = () => ({}), nodeLabels = () => ({}) } = options;
  const podsDir = join(options.kubeletDir, 'pods');
  const queue = keyedQueue();
  const claims = makeClaims({ client: options.client, podsDir });
  const tokens = makeTokens({ client: options.client, clock, log, random });
  const patience = makePatience({ clock });
  let trusting: Promise<Trust> | undefined;
  const trust = (): Promise<Trust> => {
    trusting ??= import('./trust/bundles.ts').then(({ makeTrust }) =>
      makeTrust({ ...options, client: options.client }),
    );
    return trusting;
  };
  const warn = options.warn ?? (() => {});
  let certifying: Promise<Certificates> | undefined;
  const certificates = (): Promise<Certificates> => {
    certifying ??= import('./certificates/certificates.ts').then(({ makeCertificates }) =>
      makeCertificates({ ...options, client: options.client, warn }),
    );
    return certifying;
  };
  const giving = makeGiving({ clock, warn });
  const kinds: readonly VolumeKind[] = [
    hostPathKind(patience),
    ...filesKinds({ objects: options.objects, tokens, trust, certificates, clock, log, random, allocatable }),
    localKind({ kubeletDir: options.kubeletDir, patience, giving, warn }),
    nfsKind(),
    imageKind(),
    ...(options.kinds ?? []),
    emptyDirKind(),
  ];
  /** When `setUp` is due again, monotonic; by pod uid. */
  const dueAt = new Map<string, number>();

  const setUpOne = async (
    pod: Pod,
    volume: Volume,
    shown: Map<string, string>,
    unprocessed: Set<string>,
    signal: AbortSignal | undefined,
  ): Promise<{ ready: ReadyVolume; due?: number | undefined }> => {
    const { name, ...own } = volume;
    unprocessed.add(name);
    const bound = await claims.follow(pod, volume, signal);
    unprocessed.delete(name);
    const source: VolumeSource = bound?.volume.spec ?? own;
    const kind = kinds.find(({ has }) => has(source));
    if (kind === undefined) throw unknownKind(source);
    const specName = bound?.volume.metadata?.name ?? name;
    checkName(specName);
    shown.set(name, specName);
    if (bound !== undefined) checkNode(bound, nodeLabels());
    const parent = join(podsDir, pod.metadata!.uid!, 'volumes', kind.plugin ?? '');
    if (kind.plugin !== undefined) await mkdir(parent, { recursive: true, mode: 0o750 });
    const { due, ...prepared } = await kind.setUp({
      pod,
      name,
      specName,
      source,
      block: bound?.volume.spec?.volumeMode === 'Block',
      readOnly: volume.persistentVolumeClaim?.readOnly === true,
      mountOptions: bound?.volume.spec?.mountOptions ?? [],
      folder: join(parent, specName),
      signal,
      ...(bound === undefined ? {} : { bound }),
    });
    return { ready: { name, ...prepared }, due };
  };

  /** What is left of each volume of a kind that has more than a folder. */
  const tearDownKinds = async (real: string, uid: string, signal: AbortSignal | undefined): Promise<void> => {
    await unmountBelow(join(real, uid, 'volume-subpaths'));
    for (const { plugin, tearDown } of kinds) {
      if (tearDown === undefined || plugin === undefined) continue;
      // Devices are in a folder of their own, as with kubelet.
      for (const volumes of ['volumes', 'volumeDevices']) {
        const parent = join(real, uid, volumes, plugin);
        for (const specName of await listFolder(parent)) {
          await tearDown({ podUid: uid, specName, folder: join(parent, specName), signal });
        }
      }
    }
  };

  return {
    setUp(pod, signal) {
      const uid = uidOf(pod.metadata?.uid);
      return queue.run(uid, async () => {
        if (signal?.aborted) throw abortError(signal, 'setting up volumes');
        const used = usedVolumes(pod);
        const volumes = (pod.spec?.volumes ?? []).filter(({ name }) => used.has(name));
        for (const { name } of volumes) checkName(name);
        /** What the volumes are called in messages. */
        const shown = new Map(volumes.map(({ name }) => [name, name]));
        /** Whose claims could not be followed. */
        const unprocessed = new Set<string>();
        const results = await Promise.allSettled(
          volumes.map((volume) => setUpOne(pod, volume, shown, unprocessed, signal)),
        );
        if (signal?.aborted) throw abortError(signal, 'setting up volumes');
        const failed = results.flatMap((result, index) => {
          if (result.status === 'fulfilled') return [];
          const { name } = volumes[index]!;
          const mounting = !unprocessed.has(name);
          return [{ name, specName: shown.get(name)!, mounting, cause: result.reason as unknown }];
        });
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
        claims.forget(uid);
        for (const { forget } of kinds) forget?.(uid);
        (await certifying)?.forget(uid);
        await giving.forget(uid, signal);
        let real: string;
        try {
          real = await realpath(podsDir);
        } catch (error) {
          if (errnoOf(error) === 'ENOENT') return;
          throw error;
        }
        try {
          await tearDownKinds(real, uid, signal);
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

/** What no container mounts is not set up, and holds nothing up where it cannot be (kubelet's GetPodVolumeNames). */
function usedVolumes(pod: Pod): ReadonlySet<string> {
  const { initContainers = [], containers = [], ephemeralContainers = [] } = pod.spec ?? {};
  const all = [...initContainers, ...containers, ...ephemeralContainers];
  const uses = all.flatMap(({ volumeMounts = [], volumeDevices = [] }) => [
    ...volumeMounts,
    ...volumeDevices,
  ]);
  return new Set(uses.map(({ name }) => name));
}

function unknownKind(source: VolumeSource): KeelsonError {
  const { accessModes: _, capacity: __, ...rest } = source as Record<string, unknown>;
  const known = ['claimRef', 'volumeMode', 'nodeAffinity', 'mountOptions', 'storageClassName'];
  const names = Object.keys(rest).filter(
    (key) => !known.includes(key) && !key.startsWith('persistentVolume'),
  );
  return new KeelsonError('VOLUME_FAILED', `keelson does not support ${names.join(', ')} volumes`, {
    hint: 'use a CSI driver',
  });
}

interface FailedVolume {
  readonly name: string;
  readonly specName: string;
  /** It was known what to mount. */
  readonly mounting: boolean;
  readonly cause: unknown;
}

/** kubelet's words, so that people and their alerts find what they know; `details.messages`: those of its events. */
function failureOf(failed: readonly FailedVolume[]): KeelsonError {
  const messages = failed
    .filter(({ mounting }) => mounting)
    .map(({ specName, cause }) => {
      const operation = (isError(cause) && cause.details['operation']) || 'MountVolume.SetUp';
      return `${operation} failed for volume "${specName}" : ${describe(cause)}`;
    });
  const unprocessed = failed.filter(({ mounting }) => !mounting);
  if (unprocessed.length > 0) {
    const list = (volumes: readonly FailedVolume[]) =>
      `[${volumes
        .map(({ name }) => name)
        .sort()
        .join(' ')}]`;
    const why = unprocessed.map(({ cause }) => describe(cause)).join('; ');
    messages.push(
      `Unable to attach or mount volumes: unmounted volumes=${list(failed)}, unattached volumes=[], failed to process volumes=${list(unprocessed)}: ${why}`,
    );
  }
  return new KeelsonError('VOLUME_FAILED', messages.join('; '), {
    details: { volumes: failed.map(({ specName }) => specName), messages },
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
