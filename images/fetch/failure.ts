/** Failures of a fetch in the words of this room. */
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';

/**
 * What a disk or an unpack worker says knows nothing of the registry: the layer's name is put before it. `what` names
 * the layer, `where` the folder that it should get to.
 */
export function layerError(error: unknown, what: string, where: string): unknown {
  const errno = errnoOf(error);
  const sqliteFull = (error as { errcode?: unknown } | null)?.errcode === 13;
  if (errno === 'ENOSPC' || errno === 'EDQUOT' || sqliteFull) {
    return new KeelsonError('STORAGE_FULL', `${what}: no space is left for the layer in ${where}`, {
      cause: error,
      hint: 'free some space or remove images that nobody needs',
    });
  }
  if (errno !== undefined) {
    return new KeelsonError('SYSCALL_FAILED', `${what}: ${(error as Error).message}`, {
      cause: error,
      details: { errno },
    });
  }
  if (!(error instanceof KeelsonError) || error.message.startsWith(what)) return error;
  const place = error.code === 'STORAGE_FULL' ? ` in ${where}` : '';
  return new KeelsonError(error.code, `${what}: ${error.message}${place}`, {
    cause: error.cause,
    hint: error.hint,
    details: error.details,
  });
}
