/** Reading a body that may be long, slow or broken. */
import { Readable } from 'node:stream';
import { abortError } from '../../runtime/host/errors.ts';

/**
 * Gives every piece of `body` to `take`; where that answers with a promise, nothing more is read until it resolves, and
 * `onHold` hears of it. Resolves at the end of the body; whenever it rejects (with what `body` or `take` threw, or
 * with the reason of `signal`), the body is destroyed.
 */
export function readAll(
  body: AsyncIterable<Buffer>,
  take: (chunk: Buffer) => Promise<void> | undefined,
  signal: AbortSignal,
  onHold: (held: boolean) => void = () => {},
): Promise<void> {
  // Events instead of an iterator: that would join what has gathered in the stream to a new buffer, byte by byte.
  const stream = body instanceof Readable ? body : Readable.from(body);
  return new Promise((resolve, reject) => {
    let settled = false;
    const settle = (error?: unknown) => {
      if (settled) return;
      settled = true;
      signal.removeEventListener('abort', onAbort);
      stream.removeListener('data', onData);
      if (error === undefined) return resolve();
      stream.destroy();
      reject(error);
    };
    const onAbort = () => settle(abortError(signal, 'reading'));
    const onData = (chunk: Buffer) => {
      let hold: Promise<void> | undefined;
      try {
        hold = take(chunk);
      } catch (error) {
        return settle(error);
      }
      if (hold === undefined) return;
      stream.pause();
      onHold(true);
      hold.then(() => {
        onHold(false);
        if (!settled) stream.resume();
      }, settle);
    };
    stream.on('error', settle); // Stays: it may come after all has been settled.
    if (signal.aborted) return onAbort();
    signal.addEventListener('abort', onAbort, { once: true });
    stream.once('end', () => settle());
    stream.once('close', () => settle(new Error('the connection was closed in the middle of the body')));
    stream.on('data', onData);
  });
}

/** Ends a body that nobody reads. */
export function discard(body: AsyncIterable<Buffer>): void {
  const stream = body instanceof Readable ? body : Readable.from(body);
  stream.on('error', () => {});
  stream.destroy();
}
