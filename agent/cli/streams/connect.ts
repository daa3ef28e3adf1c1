/** The command line's end of a stream: SPDY/3.1 to the URL that the agent gave, as clients of the CRI speak it. */
import { request } from 'node:http';
import { systemClock } from '../../../runtime/host/clock.ts';
import { abortError, KeelsonError } from '../../../runtime/host/errors.ts';
import { makeSpdySession, type SpdySession } from '../../../runtime/streaming/session.ts';

/** The server has a limit of its own. */
const idleMs = 24 * 3600_000;

/** Connects; `signal` also ends the connection later. Throws UNAVAILABLE, ABORTED. */
export function connectStreams(url: string, protocol: string, signal: AbortSignal): Promise<SpdySession> {
  return new Promise((resolve, reject) => {
    const refused = (why: string, cause?: unknown) =>
      reject(
        signal.aborted
          ? abortError(signal, 'the connection')
          : new KeelsonError('UNAVAILABLE', `the streaming server of the agent does not answer: ${why}`, {
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
