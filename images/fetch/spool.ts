/**
 * The compressed bytes of a layer on their way to a file, beside their unpacking. Writing costs the disk twice, so
 * whether it is done is decided when something is known of the link; what came before that waits in memory.
 */
import { constants, type FileHandle, open, rm } from 'node:fs/promises';

export interface Spool {
  /** The next bytes; they must not change any more. The giver should wait for the promise, where there is one. */
  push(bytes: Buffer): Promise<void> | undefined;
  /** Writes down everything that was pushed, decided or not. Throws what the disk says. */
  finish(): Promise<void>;
  /** Ends it; the file stays with what it has, or goes. */
  close(keep: boolean): Promise<void>;
}

export interface SpoolOptions {
  readonly path: string;
  /** Bytes that the file has already: it is continued there. */
  readonly from: number;
  /** Bytes that may wait for the disk before the giver is asked to wait too. */
  readonly mostPending: number;
  /** Asked with the bytes so far until the answer is not `wait`. */
  readonly decide: (bytes: number) => 'wait' | 'write' | 'drop';
  /** The disk refused; the file is gone, and nothing more is written. */
  readonly onFailure: (error: unknown) => void;
}

export function makeSpool({ path, from, mostPending, decide, onFailure }: SpoolOptions): Spool {
  const { O_WRONLY, O_CREAT, O_TRUNC, O_NOFOLLOW } = constants;
  const flags = O_WRONLY | O_CREAT | O_NOFOLLOW | (from === 0 ? O_TRUNC : 0);
  let state: 'wait' | 'write' | 'drop' = from > 0 ? 'write' : 'wait';
  let pending: Buffer[] = [];
  let pendingBytes = 0;
  let position = from;
  let handle: FileHandle | undefined;
  let writing: Promise<void> | undefined;
  let failure: { readonly error: unknown } | undefined;
  let wake = () => {};

  const shut = async (keep: boolean) => {
    const open = handle;
    handle = undefined;
    await open?.close();
    if (!keep) await rm(path, { force: true });
  };
  const write = async () => {
    try {
      handle ??= await open(path, flags, 0o600);
      while (pending.length > 0) {
        const batch = pending;
        pending = [];
        const bytes = pendingBytes;
        await writeAll(handle, batch, position);
        position += bytes;
        pendingBytes -= bytes;
        wake();
      }
    } catch (error) {
      failure = { error };
      state = 'drop';
      pending = [];
      pendingBytes = 0;
      await shut(false).catch(() => {});
      onFailure(error);
    } finally {
      writing = undefined;
      wake();
    }
  };

  return {
    push(bytes) {
      if (state === 'drop') return undefined;
      pending.push(bytes);
      pendingBytes += bytes.length;
      if (state === 'wait') {
        state = decide(pendingBytes);
        if (state === 'drop') {
          pending = [];
          pendingBytes = 0;
        }
      }
      if (state !== 'write') return undefined;
      writing ??= write();
      if (pendingBytes < mostPending) return undefined;
      return new Promise((resolve) => {
        wake = resolve;
      });
    },
    async finish() {
      if (state === 'wait') state = 'write';
      if (state === 'write') await (writing ?? write());
      if (failure !== undefined) throw failure.error;
    },
    async close(keep) {
      await writing;
      if (failure === undefined && state === 'write') await shut(keep);
      state = 'drop';
      pending = [];
    },
  };
}

async function writeAll(handle: FileHandle, buffers: readonly Buffer[], position: number): Promise<void> {
  const total = buffers.reduce((sum, { length }) => sum + length, 0);
  const { bytesWritten } = await handle.writev(buffers, position);
  if (bytesWritten === total) return;
  // Short, as on a disk that is nearly full: the rest says why, or fits after all.
  const rest = Buffer.concat(buffers).subarray(bytesWritten);
  for (let at = 0; at < rest.length; ) {
    const written = await handle.write(rest, at, rest.length - at, position + bytesWritten + at);
    at += written.bytesWritten;
  }
}
