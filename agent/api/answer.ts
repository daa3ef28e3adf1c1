/** Answers that are short: text, JSON, errors with kubelet's status codes. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { describe, isError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';

export function answerText(response: ServerResponse, status: number, text: string): void {
  response.writeHead(status, {
    'content-type': 'text/plain; charset=utf-8',
    'x-content-type-options': 'nosniff',
  });
  response.end(text);
}

export function answerJson(response: ServerResponse, body: unknown): void {
  response.writeHead(200, { 'content-type': 'application/json' });
  response.end(Buffer.isBuffer(body) ? body : JSON.stringify(body));
}

export function answerMethodNotAllowed(response: ServerResponse, allowed: string): void {
  response.setHeader('allow', allowed);
  answerText(response, 405, 'Method Not Allowed');
}

/** HTTP status for `error`. */
function statusOf(error: unknown): number {
  if (!isError(error)) return 500;
  const given = error.details['status'];
  if (typeof given === 'number' && error.code === 'INVALID_ARGUMENT') return given;
  switch (error.code) {
    case 'INVALID_ARGUMENT':
    case 'FAILED_PRECONDITION':
      return 400;
    case 'UNAUTHENTICATED':
      return 401;
    case 'PERMISSION_DENIED':
      return 403;
    case 'NOT_FOUND':
      return 404;
    case 'RESOURCE_EXHAUSTED':
      return 429;
    case 'UNIMPLEMENTED':
      return 501;
    default:
      return 500;
  }
}

export function answerError(
  error: unknown,
  request: IncomingMessage,
  response: ServerResponse,
  log: Logger,
): void {
  const status = statusOf(error);
  const path = (request.url ?? '').split('?')[0];
  // A command that fails is its caller's matter.
  if (status === 500 && !isError(error, 'EXEC_FAILED')) {
    log.warn({ err: error, path }, "a request of the node's API failed");
  } else log.debug({ path, status, message: describe(error) }, "a request of the node's API was refused");
  // Half of an answer must not look like a whole one.
  if (response.headersSent) return void response.destroy();
  const message = status === 401 ? 'Unauthorized' : error instanceof Error ? error.message : String(error);
  if (status === 401) response.setHeader('www-authenticate', 'Bearer');
  answerText(response, status, message);
}
