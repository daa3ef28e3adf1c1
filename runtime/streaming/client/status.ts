/** How a remote command ended: the metav1.Status on its error stream. Pure. */
import { KeelsonError } from '../../host/errors.ts';

/** The exit code that a metav1.Status on the error stream tells. Throws EXEC_FAILED where the command could not be run, UNAVAILABLE where nothing readable came. */
export function exitCodeOf(text: string): number {
  const status = parse(text);
  if (status?.['status'] === 'Success') return 0;
  const { causes } = (status?.['details'] ?? {}) as { causes?: unknown };
  for (const { reason, message } of Array.isArray(causes) ? causes : []) {
    if (reason === 'ExitCode' && /^\d{1,3}$/.test(String(message))) return Number(message);
  }
  if (typeof status?.['message'] === 'string') {
    throw new KeelsonError(
      'EXEC_FAILED',
      status['message'].replace(/^Internal error occurred: error (?:executing command|attaching)[^:]*: /, ''),
    );
  }
  throw new KeelsonError('UNAVAILABLE', 'the connection to the container was lost', {
    hint: "the agent or the container runtime may have ended: its log says why ('journalctl -u keelson')",
  });
}

function parse(text: string): Record<string, unknown> | undefined {
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : undefined;
  } catch {
    return undefined;
  }
}
