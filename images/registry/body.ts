/** Reading small response bodies whole, with a limit. */
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
