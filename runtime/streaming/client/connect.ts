/**
 * The client's end of streams: SPDY/3.1 to the URL that a streaming server gave, as clients of the CRI speak it.
 * For the command line, and for runtimes of somebody else.
 */
import { request } from 'node:http';
import { systemClock } from '../../host/clock.ts';
import { abortError, KeelsonError } from '../../host/errors.ts';
import { makeSpdySession, type SpdySession } from '../session.ts';

/** The server has a limit of its own. */
const idleMs = 24 * 3600_000;

/** Connects; `signal` also ends the connection later. `endOnReset`: of the session. Throws UNAVAILABLE, ABORTED. */
export function connectStreams(
  url: string,
  protocol: string,
  signal: AbortSignal,
  options: { readonly endOnReset?: boolean } = {},
): Promise<SpdySession> {
  return new Promise((resolve, reject) => {
    const refused = (why: string, cause?: unknown) =>
      reject(
        signal.aborted
          ? abortError(signal, 'the connection')
          : new KeelsonError('UNAVAILABLE', `the streaming server does not answer: ${why}`, {
              cause,
            }),
      );
    const asked = request(url, {
      method: 'POST',
      agent: false,
      signal,
      headers: { connection: 'Upgrade', upgrade: 'SPDY/3.1', 'x-stream-protocol-version': protocol },
    });
    asked.on('error', (error) => refused(error.message, error));
    asked.on('response', (response) => {
      response.resume();
      refused(`HTTP status ${response.statusCode}`);
    });
    asked.on('upgrade', (_response, socket, head) => {
      if (head.length > 0) socket.unshift(head);
      const session = makeSpdySession({
        carrier: socket,
        server: false,
        onStream: () => false,
        clock: systemClock,
        idleMs,
        ...options,
      });
      const leave = () => session.destroy();
      signal.addEventListener('abort', leave, { once: true });
      void session.closed.then(() => signal.removeEventListener('abort', leave));
      if (signal.aborted) leave();
      resolve(session);
    });
    asked.end();
  });
}
