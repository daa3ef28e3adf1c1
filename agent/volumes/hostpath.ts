/** hostPath volumes: a path of the host, checked to be of the type that the pod says; also as a persistent volume. */
import { chmod, type FileHandle, mkdir, open, stat } from 'node:fs/promises';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import type { Patience } from '../../runtime/host/mounts/patience.ts';
import type { VolumeKind } from './kinds/kind.ts';

export function hostPathKind(patience: Patience): VolumeKind {
  return {
    has: ({ hostPath }) => !!hostPath,
    async setUp({ source: { hostPath }, readOnly, signal }) {
      const { path, type } = hostPath!;
      await patience.ask(path, () => checkHostPath(path, type), signal);
      return { hostPath: path, readOnly };
    },
  };
}

type Kind = 'directory' | 'file' | 'socket file' | 'character device' | 'block device' | 'other';

const wanted: Readonly<Record<string, Kind>> = {
  DirectoryOrCreate: 'directory',
  Directory: 'directory',
  FileOrCreate: 'file',
  File: 'file',
  Socket: 'socket file',
  CharDevice: 'character device',
  BlockDevice: 'block device',
};

/**
 * Makes sure that `path` is what `type` (HostPathVolumeSource.type) says, making it where that says so: folders
 * with mode 0755, files with 0644, and a folder where no type was given. Links are followed: the path is the
 * host's. Throws VOLUME_FAILED.
 */
export async function checkHostPath(path: string, type: string | undefined): Promise<void> {
  if (!path.startsWith('/')) throw new KeelsonError('VOLUME_FAILED', `hostPath ${path} is not absolute`);
  if (path.split('/').includes('..')) {
    throw new KeelsonError('VOLUME_FAILED', `hostPath ${path} must not contain '..'`);
  }
  const kind = type ? wanted[type] : undefined;
  if (type && kind === undefined) {
    throw new KeelsonError('VOLUME_FAILED', `${type} is an invalid hostPath type`, {
      hint: `use one of ${Object.keys(wanted).join(', ')}`,
    });
  }
  let found = await kindOf(path);
  if (found === undefined && (!type || type === 'DirectoryOrCreate')) {
    await makeFolder(path);
    found = await kindOf(path);
  } else if (found === undefined && type === 'FileOrCreate') {
    await makeFile(path);
    found = await kindOf(path);
  }
  if (kind !== undefined && found !== kind) {
    throw new KeelsonError('VOLUME_FAILED', `hostPath type check failed: ${path} is not a ${kind}`);
  }
}

/** undefined where there is nothing. */
async function kindOf(path: string): Promise<Kind | undefined> {
  try {
    const facts = await stat(path);
    if (facts.isDirectory()) return 'directory';
    if (facts.isFile()) return 'file';
    if (facts.isSocket()) return 'socket file';
    if (facts.isCharacterDevice()) return 'character device';
    return facts.isBlockDevice() ? 'block device' : 'other';
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw new KeelsonError('VOLUME_FAILED', `cannot look at hostPath ${path}`, { cause: error });
  }
}

async function makeFolder(path: string): Promise<void> {
  try {
    const first = await mkdir(path, { recursive: true });
    if (first !== undefined) await chmod(path, 0o755);
  } catch (error) {
    throw new KeelsonError('VOLUME_FAILED', `cannot make the folder of hostPath ${path}`, { cause: error });
  }
}

/** Its folder must exist, as kubelet wants it. */
async function makeFile(path: string): Promise<void> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, 'wx', 0o644);
    await handle.chmod(0o644);
  } catch (error) {
    if (errnoOf(error) === 'EEXIST') return;
    throw new KeelsonError('VOLUME_FAILED', `cannot make the file of hostPath ${path}`, { cause: error });
  } finally {
    await handle?.close();
  }
}
