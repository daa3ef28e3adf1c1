/** configMap, secret, downwardAPI and projected: volumes of files that are written in one step, and kept up to date. */
import { chmod, mkdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { Clock } from '../../../runtime/host/clock.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import type { ObjectCache, Pod, Volume } from '../../apiserver/types.ts';
import { isWritten, writeAtomically } from '../atomic.ts';
import type { Certificates } from '../certificates/certificates.ts';
import { isMountPoint, mountTmpfs } from '../mounts.ts';
import { nestedMountPoints } from '../nested.ts';
import { type Collected, collect, tokenKey } from '../sources.ts';
import type { Tokens } from '../tokens.ts';
import type { Trust } from '../trust/bundles.ts';
import type { VolumeKind, VolumeRequest } from './kind.ts';

const plugins = {
  configMap: 'kubernetes.io~configmap',
  secret: 'kubernetes.io~secret',
  downwardAPI: 'kubernetes.io~downward-api',
  projected: 'kubernetes.io~projected',
} as const;
type FilesField = keyof typeof plugins;

/** How often objects that may change are looked at; kubelet takes 60 to 90 s. */
const refreshMs = 60_000;
const retryMs = 30_000;

export interface FilesOptions {
  readonly objects: ObjectCache;
  readonly tokens: Tokens;
  readonly trust: () => Promise<Trust>;
  readonly certificates: () => Promise<Certificates>;
  readonly clock: Clock;
  readonly log: Logger;
  readonly random: () => number;
  /** The node's allocatable resources, for downward API files. */
  readonly allocatable: () => Readonly<Record<string, string>>;
}

export function filesKinds(options: FilesOptions): VolumeKind[] {
  const { objects, tokens, trust, certificates, clock, log, random, allocatable } = options;
  /** Uids of pods whose tokens were looked for in what an earlier process wrote. */
  const adopted = new Set<string>();

  async function setUp(field: FilesField, request: VolumeRequest) {
    const { pod, name, folder, signal } = request;
    const volume: Volume = { [field]: request.source[field], name };
    await makeFolder(folder, field);
    await adoptTokens(pod, volume, folder);
    const ready = { hostPath: folder, readOnly: true };
    let collected: Collected;
    try {
      collected = await collect(pod, volume, { objects, tokens, trust, certificates, allocatable }, signal);
    } catch (error) {
      if (signal?.aborted || !(await isWritten(folder))) throw error;
      log.warn(
        { err: error, pod: pod.metadata?.name, namespace: pod.metadata?.namespace, volume: name },
        'cannot refresh a volume; what it holds is kept',
      );
      return { ...ready, due: clock.monotonic() + retryMs * (1 + random()) };
    }
    for (const inner of nestedMountPoints(pod, name)) await mkdir(join(folder, inner), { recursive: true });
    await writeAtomically(folder, collected.payload, {
      now: clock.now(),
      fsGroup: pod.spec?.securityContext?.fsGroup,
    });
    const waits = [
      ...(collected.mayChange ? [refreshMs * (1 + random() / 2)] : []),
      ...(collected.renewAt === undefined ? [] : [Math.max(0, collected.renewAt - clock.now())]),
    ];
    return waits.length === 0 ? ready : { ...ready, due: clock.monotonic() + Math.min(...waits) };
  }

  /** A process that starts again finds the tokens of its pods in their volumes, and need not ask for new ones. */
  async function adoptTokens(pod: Pod, volume: Volume, folder: string): Promise<void> {
    const key = `${pod.metadata!.uid}/${volume.name}`;
    if (adopted.has(key)) return;
    for (const { serviceAccountToken } of volume.projected?.sources ?? []) {
      if (!serviceAccountToken) continue;
      const text = await readFile(join(folder, '..data', serviceAccountToken.path), 'utf8').catch(
        () => undefined,
      );
      if (text !== undefined) tokens.adopt(tokenKey(pod, serviceAccountToken), text);
    }
    adopted.add(key);
  }

  function forget(podUid: string): void {
    tokens.forget(podUid);
    for (const key of adopted) if (key.startsWith(`${podUid}/`)) adopted.delete(key);
  }

  return (Object.keys(plugins) as FilesField[]).map((field) => ({
    plugin: plugins[field],
    has: (source) => !!source[field],
    setUp: (request) => setUp(field, request),
    forget,
  }));
}

/** Secrets and tokens never touch a disk; the others are folders. */
async function makeFolder(folder: string, field: FilesField): Promise<void> {
  const isNew = (await mkdir(folder, { recursive: true })) !== undefined;
  if (field === 'secret' || field === 'projected') {
    if (!(await isMountPoint(folder))) mountTmpfs(folder, ['mode=0777']);
  } else if (isNew) {
    await chmod(folder, 0o777);
  }
}
