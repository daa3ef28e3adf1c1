/**
 * The thread that unpacks: decompresses, hashes and applies layers, several at a time.
 *
 * Its root folder is its own (unshare of CLONE_FS) and is, whenever file system work is done, the folder of the layer
 * whose turn it is. After the first layer has begun it can therefore see no other file of the machine: everything it
 * needs is loaded before, and only synchronous file calls are used, because asynchronous ones run on threads of the
 * pool, whose root is the machine's. zlib uses the pool too, which is how a layer gets more than one processor.
 */
import { createHash } from 'node:crypto';
import { PassThrough, type Transform } from 'node:stream';
import { parentPort } from 'node:worker_threads';
import { createGunzip, createZstdDecompress } from 'node:zlib';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { chroot, cloneFlags, fchdir, unshare } from '../../runtime/host/syscalls.ts';
import { type Applier, makeApplier } from './apply.ts';
import { type EntrySink, readArchive } from './entries.ts';
import type { FromWorker, ToWorker, UnpackLimits } from './protocol.ts';

const port = parentPort!;
unshare(cloneFlags.FS);

interface Job {
  data(bytes: Uint8Array): void;
  end(): void;
  abort(): void;
}

const jobs = new Map<number, Job>();
/** The descriptor of the folder that is this thread's root now. */
let jail = -1;

const send = (message: FromWorker) => port.postMessage(message);

/** Makes `folder` the root of this thread: a descriptor gets out of any jail, and leads into the next. */
function enter(folder: number): void {
  if (jail === folder) return;
  jail = -1;
  fchdir(folder);
  chroot('.');
  jail = folder;
}

/** `applier` with `folder` as the root. Once the job is settled its descriptor may be another's: nothing more is done. */
function jailed(applier: Applier, folder: number, isSettled: () => boolean): EntrySink {
  const inside = (body: () => void) => {
    if (isSettled()) throw new KeelsonError('ABORTED', 'unpacking has ended');
    enter(folder);
    body();
  };
  return {
    begin: (entry) => inside(() => applier.begin(entry)),
    data: (piece) => inside(() => applier.data(piece)),
    end: () => inside(() => applier.end()),
  };
}

const chunkSize = 256 << 10;

/** By the first bytes, not by the media type, which is often wrong. */
function decompressorFor(first: Uint8Array): Transform {
  if (first[0] === 0x1f && first[1] === 0x8b) return createGunzip({ chunkSize });
  const zstd = first[0] === 0x28 && first[1] === 0xb5 && first[2] === 0x2f && first[3] === 0xfd;
  const skippable =
    (first[0]! & 0xf0) === 0x50 && first[1] === 0x2a && first[2] === 0x4d && first[3] === 0x18;
  if (zstd || skippable) return createZstdDecompress({ chunkSize });
  return new PassThrough({ highWaterMark: chunkSize });
}

async function* measured(
  source: AsyncIterable<Buffer>,
  onChunk: (chunk: Buffer) => void,
  limits: UnpackLimits,
): AsyncGenerator<Buffer> {
  let total = 0;
  for await (const chunk of source) {
    total += chunk.length;
    if (total > limits.bytes) {
      throw new KeelsonError('LAYER_UNSAFE', `it has more than ${limits.bytes} bytes when decompressed`);
    }
    onChunk(chunk);
    yield chunk;
  }
}

function begin({ id, folder, limits, algorithm }: ToWorker & { type: 'begin' }): void {
  const digest = createHash(algorithm);
  const diffId = createHash('sha256');
  const applier = makeApplier(limits);
  let stream: Transform | undefined;
  let settled = false;

  const fail = (error: unknown) => {
    if (settled) return;
    settled = true;
    jobs.delete(id);
    stream?.destroy();
    applier.abandon();
    if (jail === folder) jail = -1; // The number may soon be another folder's.
    const { code, message, hint } = asFailure(error);
    send({ type: 'failed', id, code, message, hint });
  };
  const run = async (source: Transform) => {
    await readArchive(
      measured(source as AsyncIterable<Buffer>, (chunk) => diffId.update(chunk), limits),
      jailed(applier, folder, () => settled),
    );
    if (settled) return;
    enter(folder);
    const sums = applier.finish();
    settled = true;
    jobs.delete(id);
    jail = -1;
    send({
      type: 'done',
      id,
      result: {
        digest: `${algorithm}:${digest.digest('hex')}`,
        diffId: `sha256:${diffId.digest('hex')}`,
        ...sums,
      },
    });
  };
  const start = (first: Uint8Array): Transform => {
    stream = decompressorFor(first);
    stream.once('error', fail);
    run(stream).catch(fail);
    return stream;
  };

  jobs.set(id, {
    data(bytes) {
      digest.update(bytes);
      (stream ?? start(bytes)).write(bytes, () => send({ type: 'taken', id, bytes: bytes.byteLength }));
    },
    end() {
      (stream ?? start(new Uint8Array())).end();
    },
    abort: () => fail(new KeelsonError('ABORTED', 'unpacking was cancelled')),
  });
}

function asFailure(error: unknown): { code: KeelsonError['code']; message: string; hint?: string } {
  if (error instanceof KeelsonError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (
    code?.startsWith('Z_') ||
    code?.startsWith('ZSTD_') ||
    code?.startsWith('ERR_ZLIB') ||
    code?.startsWith('ERR__ERROR')
  ) {
    return { code: 'IMAGE_INVALID', message: `it cannot be decompressed: ${message}` };
  }
  return { code: errnoOf(error) === undefined ? 'INTERNAL' : 'SYSCALL_FAILED', message };
}

port.on('message', (message: ToWorker) => {
  if (message.type === 'begin') return begin(message);
  const job = jobs.get(message.id);
  if (job === undefined) return; // It has failed, and the main thread does not know yet.
  if (message.type === 'data') job.data(message.bytes);
  else job[message.type]();
});
