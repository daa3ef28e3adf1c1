/** Response bodies: small ones whole, with a limit, and large ones with an eye on whether they come to their end. */
import type { Readable } from 'node:stream';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { requestError } from '../../runtime/host/http.ts';

/** Throws IMAGE_INVALID past `limit` bytes, UNAVAILABLE, DEADLINE_EXCEEDED or ABORTED. `what` names the request. */
export async function readBody(
  body: Readable,
  limit: number,
  what: string,
  signal?: AbortSignal,
): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      size += chunk.length;
      if (size > limit)
        throw new KeelsonError('IMAGE_INVALID', `${what}: the answer has more than ${limit} bytes`);
      chunks.push(chunk);
    }
  } catch (error) {
    throw requestError(error, what, signal);
  }
  return Buffer.concat(chunks);
}

/** `body` as it is; calls `broke` once where it ends, or is left, before `expected` bytes. */
export function watched(body: Readable, expected: number, broke: () => void): AsyncIterable<Buffer> {
  const source: AsyncIterator<Buffer> = body[Symbol.asyncIterator]();
  let bytes = 0;
  let over = false;
  const end = () => {
    if (!over && bytes < expected) broke();
    over = true;
  };
  const iterator: AsyncIterator<Buffer> = {
    async next() {
      try {
        const step = await source.next();
        if (step.done) end();
        else bytes += step.value.length;
        return step;
      } catch (error) {
        end();
        throw error;
      }
    },
    async return() {
      end();
      body.destroy(); // One that nobody began to read would not end otherwise.
      await source.return?.();
      return { done: true, value: undefined };
    },
  };
  return { [Symbol.asyncIterator]: () => iterator };
}
