/** Lifecycle hooks: exec, httpGet and sleep. */
import { sleep } from '../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { makeHttpClient } from '../../../runtime/host/http.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import type { ActionContext } from './context.ts';
import { portOf } from './probe.ts';

export type Hook = NonNullable<NonNullable<PodContainer['lifecycle']>['preStop']>;

/** Runs the hook to its end. Throws when it fails; `signal` ends it. */
export async function runHook(
  context: ActionContext,
  container: PodContainer,
  id: string,
  hook: Hook,
  signal: AbortSignal,
): Promise<void> {
  if (hook.exec !== undefined) {
    const result = await context.runtime.execSync(id, hook.exec.command ?? [], 0, signal);
    if (result.exitCode === 0) return;
    throw new KeelsonError(
      'FAILED_PRECONDITION',
      `hook command of container ${container.name} ended with exit code ${result.exitCode}`,
    );
  }
  if (hook.sleep !== undefined) return sleep(context.clock, hook.sleep.seconds * 1000, signal);
  if (hook.httpGet !== undefined) return httpHook(context, container, hook.httpGet, signal);
  throw new KeelsonError('FAILED_PRECONDITION', `hook of container ${container.name} has no known kind`);
}

async function httpHook(
  context: ActionContext,
  container: PodContainer,
  action: NonNullable<Hook['httpGet']>,
  signal: AbortSignal,
): Promise<void> {
  const host = action.host || context.observed.sandboxes[0]?.ips[0] || context.hostIps()[0];
  if (host === undefined) throw new KeelsonError('FAILED_PRECONDITION', 'the pod has no address yet');
  const port = portOf(container, action.port);
  const bracketed = host.includes(':') ? `[${host}]` : host;
  const path = (action.path ?? '/').startsWith('/') ? (action.path ?? '/') : `/${action.path}`;
  const url = new URL(`${(action.scheme ?? 'HTTP').toLowerCase()}://${bracketed}:${port}${path}`);
  const headers: Record<string, string> = { 'user-agent': 'kube-lifecycle/keelson', accept: '*/*' };
  for (const { name, value } of action.httpHeaders ?? []) headers[name.toLowerCase()] = value;
  // A pod's certificate is its own affair, as for kubelet.
  const http = makeHttpClient({ tls: { insecure: true }, connections: 1 });
  try {
    const response = await http.request({ method: 'GET', url, headers, signal });
    await response.body.dump();
    // Any answer counts: kubelet discards the status.
  } finally {
    await http.destroy();
  }
}
