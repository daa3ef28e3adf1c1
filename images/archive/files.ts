/** The files of an archive, whether it is a tar file (read in place), a compressed one (spooled) or a folder. */
import { constants } from 'node:fs';
import { type FileHandle, open, readlink, realpath } from 'node:fs/promises';
import { isAbsolute, join } from 'node:path';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import type { Store } from '../store/store.ts';
import { compressionOf, spool } from './spool.ts';
import { cleanMember, indexTar, readFully, type TarMember } from './tar_index.ts';

export interface ArchiveFiles {
  /** Of the archive, for messages. */
  readonly path: string;
  /** Bytes of the file `name`; undefined where there is none. Throws IMAGE_INVALID for a name that leads out. */
  size(name: string): Promise<number | undefined>;
  /** Its bytes from `offset` on. Throws IMAGE_INVALID where it is gone or shorter than it was. */
  read(name: string, offset: number, signal?: AbortSignal): AsyncIterable<Buffer>;
  /** To be called when nothing reads any more. */
  close(): Promise<void>;
}

export interface OpenOptions {
  readonly store: Pick<Store, 'stage' | 'discard'>;
  /** Bytes of a compressed archive after decompression. */
  readonly limit: number;
}

const pieceSize = 256 << 10;
const mostLinks = 8;

/** Throws NOT_FOUND, INVALID_ARGUMENT, IMAGE_INVALID, LAYER_UNSAFE, STORAGE_FULL, ABORTED. */
export async function openArchive(
  options: OpenOptions,
  path: string,
  signal?: AbortSignal,
): Promise<ArchiveFiles> {
  if (!isAbsolute(path))
    throw new KeelsonError('INVALID_ARGUMENT', `archive ${path}: the path is not absolute`);
  let file: FileHandle;
  try {
    // Not to hang on a fifo.
    file = await open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  } catch (error) {
    const missing = errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR';
    throw new KeelsonError(missing ? 'NOT_FOUND' : 'INVALID_ARGUMENT', `archive ${path}: ${whyNot(error)}`, {
      cause: error,
    });
  }
  try {
    const facts = await file.stat();
    if (facts.isDirectory()) {
      await file.close();
      return openFolder(path, await realpath(path));
    }
    if (!facts.isFile()) throw new KeelsonError('IMAGE_INVALID', 'it is neither a file nor a folder');
    const compression = compressionOf(await readFully(file, 0, Buffer.alloc(4)));
    if (compression !== 'none') {
      const spooled = await spool(options.store, file, compression, options.limit, signal);
      await file.close();
      file = spooled;
    }
    return openTar(path, file, await indexTar(file, signal));
  } catch (error) {
    await file.close();
    throw about(path, error);
  }
}

/** `error` with the archive's name before it, where it does not say it; what the system refused is one of ours then. */
export function about(path: string, error: unknown): unknown {
  if (error instanceof KeelsonError) {
    if (error.message.includes(path)) return error;
    const { code, message, cause, hint, details } = error;
    return new KeelsonError(code, `archive ${path}: ${message}`, { cause, hint, details });
  }
  const errno = errnoOf(error);
  if (errno === undefined) return error;
  return new KeelsonError('SYSCALL_FAILED', `archive ${path}: ${whyNot(error)}`, {
    cause: error,
    details: { errno },
  });
}

function openTar(path: string, file: FileHandle, members: ReadonlyMap<string, TarMember>): ArchiveFiles {
  const find = (name: string): { offset: number; size: number } | undefined => {
    let wanted = cleanMember(name);
    for (let hop = 0; hop <= mostLinks; hop++) {
      if (wanted === undefined) throw leadsOut(path, name);
      const member = members.get(wanted);
      if (member === undefined || 'offset' in member) return member;
      wanted = member.link;
    }
    throw new KeelsonError('IMAGE_INVALID', `archive ${path}: ${show(name)} is a link to a link without end`);
  };
  return {
    path,
    async size(name) {
      return find(name)?.size;
    },
    async *read(name, offset, signal) {
      const member = find(name);
      if (member === undefined) throw gone(path, name);
      yield* pieces(path, name, file, member.offset + offset, member.offset + member.size, signal);
    },
    close: () => file.close(),
  };
}

/** `root` is the folder's real path: nothing that a link below it leads to outside is read. */
function openFolder(path: string, root: string): ArchiveFiles {
  const openMember = async (name: string): Promise<FileHandle | undefined> => {
    const clean = cleanMember(name);
    if (clean === undefined || clean.includes('\0')) throw leadsOut(path, name);
    let file: FileHandle;
    try {
      file = await open(join(root, clean), constants.O_RDONLY | constants.O_NONBLOCK | constants.O_NOCTTY);
    } catch (error) {
      const errno = errnoOf(error);
      if (errno === 'ENOENT' || errno === 'ENOTDIR' || errno === 'ENAMETOOLONG') return undefined;
      throw new KeelsonError('IMAGE_INVALID', `archive ${path}: ${show(name)}: ${whyNot(error)}`, {
        cause: error,
      });
    }
    try {
      // Of what has been opened, so that no link can change in between.
      const real = await readlink(`/proc/self/fd/${file.fd}`);
      if (!real.startsWith(root === '/' ? root : `${root}/`)) throw leadsOut(path, name);
      if ((await file.stat()).isFile()) return file;
      throw new KeelsonError('IMAGE_INVALID', `archive ${path}: ${show(name)} is not a file`);
    } catch (error) {
      await file.close();
      throw error;
    }
  };
  return {
    path,
    async size(name) {
      const file = await openMember(name);
      try {
        return file === undefined ? undefined : (await file.stat()).size;
      } finally {
        await file?.close();
      }
    },
    async *read(name, offset, signal) {
      const file = await openMember(name);
      if (file === undefined) throw gone(path, name);
      try {
        yield* pieces(path, name, file, offset, (await file.stat()).size, signal);
      } finally {
        await file.close();
      }
    },
    async close() {},
  };
}

async function* pieces(
  path: string,
  name: string,
  file: FileHandle,
  from: number,
  to: number,
  signal?: AbortSignal,
): AsyncGenerator<Buffer> {
  for (let at = from; at < to; ) {
    if (signal?.aborted) throw abortError(signal, `reading archive ${path}`);
    const wanted = Buffer.allocUnsafe(Math.min(pieceSize, to - at));
    let piece: Buffer;
    try {
      piece = await readFully(file, at, wanted);
    } catch (error) {
      const why = `archive ${path}: ${show(name)} cannot be read: ${whyNot(error)}`;
      throw new KeelsonError('IMAGE_INVALID', why, { cause: error });
    }
    if (piece.length < wanted.length) {
      throw new KeelsonError('IMAGE_INVALID', `archive ${path} became shorter while it was read`);
    }
    yield piece;
    at += piece.length;
  }
}

/** A name out of an archive, for messages. */
export function show(name: string): string {
  return JSON.stringify(name.slice(0, 300));
}

function whyNot(error: unknown): string {
  const known: Readonly<Record<string, string>> = {
    ENOENT: 'there is no such file or folder',
    ENOTDIR: 'there is no such file or folder',
    EACCES: 'it may not be read',
    ELOOP: 'it is a link to a link without end',
  };
  return known[errnoOf(error) ?? ''] ?? (error instanceof Error ? error.message : String(error));
}

function leadsOut(path: string, name: string): KeelsonError {
  return new KeelsonError('IMAGE_INVALID', `archive ${path}: ${show(name)} leads out of the archive`);
}

function gone(path: string, name: string): KeelsonError {
  return new KeelsonError('IMAGE_INVALID', `archive ${path}: ${show(name)} is missing`);
}
