/** The command line's end of the control socket. */
import type { IncomingMessage } from 'node:http';
import { createConnection } from 'node:net';
import { abortError, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { type Control, decodeError, type Verb, type Verbs } from './protocol.ts';

/** A line of an answer: a list of thousands of images is one. */
const maxLine = 64 << 20;

/**
 * Whether an agent listens on the socket `path`. Throws PERMISSION_DENIED where it must not be asked.
 */
export function agentListens(path: string): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(path, () => {
      socket.destroy();
      resolve(true);
    });
    socket.once('error', (error) => {
      if (['EACCES', 'EPERM'].includes(errnoOf(error) ?? '')) {
        reject(
          new KeelsonError('PERMISSION_DENIED', `${path} is for root only`, {
            cause: error,
            hint: 'run it as root',
          }),
        );
      } else resolve(false); // ENOENT, or ECONNREFUSED of one that a killed agent left.
    });
  });
}

/** Calls the agent that listens on `path`; one connection for each call. */
export function connectControl(path: string): Control {
  return {
    async call(verb, request, { signal, onProgress }) {
      if (signal.aborted) throw abortError(signal, verb);
      try {
        const response = await post(path, verb, JSON.stringify(request), signal);
        return await readAnswer(response, verb, onProgress);
      } catch (error) {
        if (signal.aborted) throw abortError(signal, verb);
        if (error instanceof KeelsonError) throw error;
        throw new KeelsonError('UNAVAILABLE', `the agent ended before it answered to ${verb}`, {
          cause: error,
          hint: "its log says why ('journalctl -u keelson')",
        });
      }
    },
  };
}

async function post(path: string, verb: Verb, body: string, signal: AbortSignal): Promise<IncomingMessage> {
  const { request } = await import('node:http');
  return new Promise((resolve, reject) => {
    const sent = request(
      {
        socketPath: path,
        method: 'POST',
        path: `/v1/${verb}`,
        agent: false,
        signal,
        headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) },
      },
      resolve,
    );
    sent.on('error', reject);
    sent.end(body);
  });
}

async function readAnswer<V extends Verb>(
  response: IncomingMessage,
  verb: V,
  onProgress: ((progress: Verbs[V]['progress']) => void) | undefined,
): Promise<Verbs[V]['result']> {
  let rest = '';
  response.setEncoding('utf8');
  for await (const chunk of response as AsyncIterable<string>) {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop()!;
    if (rest.length > maxLine) throw garbage(verb);
    for (const line of lines) {
      const message = parse(line, verb);
      if ('error' in message) throw decodeError(message['error']);
      if ('result' in message) return message['result'] as Verbs[V]['result'];
      onProgress?.(message['progress'] as Verbs[V]['progress']);
    }
  }
  throw garbage(verb);
}

function parse(line: string, verb: Verb): Record<string, unknown> {
  try {
    const message: unknown = JSON.parse(line);
    if (typeof message === 'object' && message !== null) return message as Record<string, unknown>;
  } catch {}
  throw garbage(verb);
}

function garbage(verb: Verb): KeelsonError {
  return new KeelsonError('UNAVAILABLE', `the answer to ${verb} is not one of an agent, or not a whole one`, {
    hint: 'the agent may have ended, or be of another version: see its log',
  });
}
