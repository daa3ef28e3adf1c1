/** Writing an archive, a tar file or a folder, that is there under its name only when it is whole. */
import { createHash, randomBytes } from 'node:crypto';
import { type FileHandle, lstat, mkdir, open, rename, rm } from 'node:fs/promises';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { removeTree, syncFolder, temporaryPrefix } from '../../runtime/host/files.ts';
import { blockSize, encodeHeader, paddingOf } from './tar_headers.ts';

export interface ArchiveWriter {
  /** A small file; one that is there already is left. */
  file(name: string, bytes: Buffer): Promise<void>;
  /** A file that is named when its content, and so its sha256 digest, is known. */
  stream(
    source: AsyncIterable<Buffer>,
    nameOf: (digest: string) => string,
    signal?: AbortSignal,
  ): Promise<{ digest: string; size: number }>;
  /** Makes it durable and gives it its name. Throws ALREADY_EXISTS. */
  finish(): Promise<void>;
  /** Removes what is there so far. */
  discard(): Promise<void>;
}

/** Throws INVALID_ARGUMENT, ALREADY_EXISTS, NOT_FOUND where the folder above is not there. */
export async function createArchive(path: string, kind: 'tar' | 'folder'): Promise<ArchiveWriter> {
  if (!isAbsolute(path)) throw new KeelsonError('INVALID_ARGUMENT', `${path} is not an absolute path`);
  await expectFree(path);
  const temporary = join(
    dirname(path),
    `${temporaryPrefix}${basename(path).slice(0, 64)}-${randomBytes(6).toString('hex')}`,
  );
  try {
    return kind === 'tar' ? await createTar(path, temporary) : await createFolder(path, temporary);
  } catch (error) {
    if (errnoOf(error) !== 'ENOENT' && errnoOf(error) !== 'ENOTDIR') throw error;
    throw new KeelsonError('NOT_FOUND', `the folder ${dirname(path)} does not exist`, { cause: error });
  }
}

async function createTar(path: string, temporary: string): Promise<ArchiveWriter> {
  const file = await open(temporary, 'wx', 0o644);
  const written = new Set<string>();
  let end = 0;
  const put = async (bytes: Buffer) => {
    await writeAt(file, bytes, end);
    end += bytes.length;
  };
  return {
    async file(name, bytes) {
      if (written.has(name)) return;
      written.add(name);
      await put(
        Buffer.concat([encodeHeader(name, bytes.length), bytes, Buffer.alloc(paddingOf(bytes.length))]),
      );
    },
    async stream(source, nameOf, signal) {
      const headerAt = end;
      end += blockSize;
      const sums = await pour(source, put, signal);
      await put(Buffer.alloc(paddingOf(sums.size)));
      await writeAt(file, encodeHeader(nameOf(sums.digest), sums.size), headerAt);
      return sums;
    },
    async finish() {
      await put(Buffer.alloc(2 * blockSize));
      await file.sync();
      await file.close();
      await reveal(temporary, path);
    },
    async discard() {
      await file.close();
      await rm(temporary, { force: true });
    },
  };
}

async function createFolder(path: string, temporary: string): Promise<ArchiveWriter> {
  await mkdir(temporary, { mode: 0o755 });
  const folders = new Set<string>([temporary]);
  const folderOf = async (name: string) => {
    const folder = dirname(join(temporary, name));
    await mkdir(folder, { recursive: true, mode: 0o755 });
    for (let above = folder; above !== temporary; above = dirname(above)) folders.add(above);
    return join(temporary, name);
  };
  const fill = async (target: string, body: (file: FileHandle) => Promise<void>) => {
    const file = await open(target, 'wx', 0o644);
    try {
      await body(file);
      await file.sync();
    } finally {
      await file.close();
    }
  };
  const written = new Set<string>();
  return {
    async file(name, bytes) {
      if (written.has(name)) return;
      written.add(name);
      await fill(await folderOf(name), (file) => writeAt(file, bytes, 0));
    },
    async stream(source, nameOf, signal) {
      const part = join(temporary, 'part');
      let sums = { digest: '', size: 0 };
      await fill(part, async (file) => {
        let end = 0;
        const put = async (bytes: Buffer) => {
          await writeAt(file, bytes, end);
          end += bytes.length;
        };
        sums = await pour(source, put, signal);
      });
      await rename(part, await folderOf(nameOf(sums.digest)));
      return sums;
    },
    async finish() {
      for (const folder of folders) await syncFolder(folder);
      await reveal(temporary, path);
    },
    discard: () => removeTree(temporary),
  };
}

async function pour(
  source: AsyncIterable<Buffer>,
  put: (bytes: Buffer) => Promise<void>,
  signal?: AbortSignal,
): Promise<{ digest: string; size: number }> {
  const hash = createHash('sha256');
  let size = 0;
  for await (const chunk of source) {
    if (signal?.aborted) throw abortError(signal, 'writing the archive');
    hash.update(chunk);
    size += chunk.length;
    await put(chunk);
  }
  return { digest: `sha256:${hash.digest('hex')}`, size };
}

async function writeAt(file: FileHandle, bytes: Buffer, at: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    done += (await file.write(bytes, done, bytes.length - done, at + done)).bytesWritten;
  }
}

async function reveal(temporary: string, path: string): Promise<void> {
  await expectFree(path);
  await rename(temporary, path);
  await syncFolder(dirname(path));
}

async function expectFree(path: string): Promise<void> {
  const found = await lstat(path).catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT' || errnoOf(error) === 'ENOTDIR') return undefined;
    throw error;
  });
  if (found === undefined) return;
  throw new KeelsonError('ALREADY_EXISTS', `${path} exists already`, {
    hint: 'choose another path, or remove it first',
  });
}
