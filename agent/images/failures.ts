/** What a failed pull means: for the next credential, for the pod's status, for the copy on the node. Pure. */
import { describe, isError, KeelsonError, reasonOf } from '../../runtime/host/errors.ts';

/** Whether the registry might answer otherwise to other credentials; many say "not found" for "not for you". */
export function otherCredentialMayHelp(error: unknown): boolean {
  return (
    isError(error, 'IMAGE_PULL_DENIED', 'IMAGE_NOT_FOUND') ||
    isError(error, 'UNAUTHENTICATED', 'PERMISSION_DENIED', 'NOT_FOUND') ||
    // Too many requests, for one account, and the like.
    (isError(error, 'REGISTRY_UNAVAILABLE') && typeof error.details['status'] === 'number')
  );
}

/**
 * Whether no registry could be reached at all: connections that fail or time out. Any HTTP answer, also of a token
 * service or one of several endpoints, is an answer. `details.answered`, where the image service gives it, decides.
 */
export function noRegistryAnswered(error: unknown): boolean {
  if (!isError(error, 'REGISTRY_UNAVAILABLE')) return false;
  const { answered, status } = error.details;
  if (typeof answered === 'boolean') return !answered;
  return status === undefined && isError(error.cause, 'UNAVAILABLE', 'DEADLINE_EXCEEDED');
}

/** One error for the tries with several credentials: the last one's, with what each of them said once. */
export function ofAllTries(errors: readonly unknown[]): unknown {
  const last = errors.at(-1);
  const said = [...new Set(errors.map(describe))];
  if (said.length <= 1) return last;
  const code = last instanceof KeelsonError ? last.code : 'INTERNAL';
  const details = last instanceof KeelsonError ? last.details : {};
  return new KeelsonError(code, `with ${errors.length} credentials in turn: ${said.join('; ')}`, { details });
}

/**
 * `reason` and `message` of the waiting container, as kubelet words them. An error of another runtime says by how its
 * message begins (k8s.io/cri-api/pkg/errors) what it is.
 */
export function pullFailure(image: string, error: unknown): { reason: string; message: string } {
  const text = describe(error);
  const [, named, rest] = /^(RegistryUnavailable|SignatureValidationFailed)(.*)$/s.exec(text) ?? [];
  const reason = named ?? reasonOf(error, 'ErrImagePull');
  const why = named === undefined ? `: ${text}` : rest;
  if (reason === 'RegistryUnavailable')
    return { reason, message: `image pull failed for ${image} because the registry is unavailable${why}` };
  if (reason === 'SignatureValidationFailed')
    return {
      reason,
      message: `image pull failed for ${image} because the signature validation failed${why}`,
    };
  return { reason, message: text };
}
