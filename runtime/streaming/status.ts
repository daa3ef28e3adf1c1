/** How a command's end is told on the error stream. Pure. */
import { describe } from '../host/errors.ts';

export type Outcome =
  | { readonly exitCode: number }
  /** `doing` names what failed: `executing command in container`. */
  | { readonly error: unknown; readonly doing: string };

/**
 * Protocol 4 and later: a metav1.Status, always. Before: the text of an error, and undefined (nothing is written)
 * where there is none.
 */
export function writeStatus(outcome: Outcome, version: number): string | undefined {
  const status = statusOf(outcome);
  if (version >= 4) return JSON.stringify(status);
  return status.status === 'Success' ? undefined : status.message;
}

interface Status {
  readonly metadata: Readonly<Record<string, never>>;
  readonly status: 'Success' | 'Failure';
  readonly message?: string;
  readonly reason?: string;
  readonly details?: { readonly causes: readonly { readonly reason: string; readonly message: string }[] };
  readonly code?: number;
}

function statusOf(outcome: Outcome): Status {
  if ('error' in outcome) {
    return {
      metadata: {},
      status: 'Failure',
      message: `Internal error occurred: error ${outcome.doing}: ${describe(outcome.error)}`,
      reason: 'InternalError',
      code: 500,
    };
  }
  const { exitCode } = outcome;
  if (exitCode === 0) return { metadata: {}, status: 'Success' };
  return {
    metadata: {},
    status: 'Failure',
    message: `command terminated with non-zero exit code: exit status ${exitCode}`,
    reason: 'NonZeroExitCode',
    details: { causes: [{ reason: 'ExitCode', message: String(exitCode) }] },
  };
}
