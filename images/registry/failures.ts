/** What is said when no endpoint of a registry had what was wanted: each of them with its own reason. */
import { type ErrorCode, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Endpoint } from './hosts.ts';

export interface Failure {
  /** An endpoint, or by the same words an address that the image itself names (a foreign layer's). */
  readonly endpoint: Pick<Endpoint, 'name' | 'isRegistry'>;
  readonly error: KeelsonError;
}

const tellable: readonly ErrorCode[] = [
  'IMAGE_NOT_FOUND',
  'IMAGE_PULL_DENIED',
  'IMAGE_DIGEST_MISMATCH',
  'IMAGE_INVALID',
  'REGISTRY_UNAVAILABLE',
];

/** Whether `error` is about one endpoint, so that another may be asked for the same. */
export function isEndpointsOwn(error: unknown): error is KeelsonError {
  return isError(error, ...tellable);
}

/**
 * The one error for all `failures` (at least one) to get `what`. What the registry itself said decides the code; where
 * only mirrors were asked, one that did not answer might have had it, so the code is then REGISTRY_UNAVAILABLE.
 * `details.answered` says whether anybody answered, by HTTP, who has a say about what exists: what a mirror lacks does
 * not count where the registry itself was asked.
 */
export function combine(what: string, failures: readonly Failure[]): KeelsonError {
  const deciding =
    failures.findLast(({ endpoint }) => endpoint.isRegistry) ??
    failures.find(({ error }) => error.code === 'REGISTRY_UNAVAILABLE') ??
    failures.at(-1)!;
  if (failures.length === 1 && deciding.endpoint.isRegistry) return deciding.error;
  const { code, hint, cause, details } = deciding.error;
  const askedRegistry = failures.some(({ endpoint }) => endpoint.isRegistry);
  const answered = failures.some(
    ({ endpoint, error }) =>
      hasAnswered(error) && (endpoint.isRegistry || !askedRegistry || error.code !== 'IMAGE_NOT_FOUND'),
  );
  const reasons = failures.map(({ endpoint, error }) => `${endpoint.name}: ${reasonOf(what, error)}`);
  return new KeelsonError(code, `${what}: ${reasons.join('; ')}`, {
    hint,
    cause,
    details: {
      ...details,
      answered,
      endpoints: failures.map(({ endpoint, error }) => ({ endpoint: endpoint.name, code: error.code })),
    },
  });
}

function hasAnswered({ code, details, cause }: KeelsonError): boolean {
  if (typeof details['answered'] === 'boolean') return details['answered'];
  return (
    code !== 'REGISTRY_UNAVAILABLE' ||
    details['status'] !== undefined ||
    !isError(cause, 'UNAVAILABLE', 'DEADLINE_EXCEEDED')
  );
}

/** The message of `error` without `what`, which it begins with, and with the causes that add something. */
function reasonOf(what: string, error: KeelsonError): string {
  const prefix = `${what}: `;
  let text = error.message.startsWith(prefix) ? error.message.slice(prefix.length) : error.message;
  for (
    let { cause } = error as Error, depth = 0;
    cause instanceof Error && depth < 5;
    { cause } = cause, depth++
  ) {
    const more = cause.message.startsWith(prefix) ? cause.message.slice(prefix.length) : cause.message;
    if (!text.includes(more)) text += `: ${more}`;
  }
  return text;
}
