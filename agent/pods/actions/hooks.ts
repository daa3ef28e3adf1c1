/** Lifecycle hooks: exec, httpGet and sleep (kubelet's lifecycle handlers). */
import { sleep } from '../../../runtime/host/clock.ts';
import { abortError, KeelsonError } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import { headersOf, httpGet, requestTo, urlOf } from '../probes/http_get.ts';
import { type ActionContext, tell } from './context.ts';

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
  if (hook.sleep !== undefined) return sleepHook(context, container, id, hook.sleep.seconds, signal);
  if (hook.httpGet !== undefined) return httpHook(context, container, hook.httpGet, signal);
  throw new KeelsonError('FAILED_PRECONDITION', `hook of container ${container.name} has no known kind`);
}

/** Ends early, as a failure of no consequence, when the container has ended: nobody is left to wait for. */
async function sleepHook(
  { clock, runtime }: ActionContext,
  container: PodContainer,
  id: string,
  seconds: number,
  signal: AbortSignal,
): Promise<void> {
  const ended = new AbortController();
  const stopListening = runtime.containerEvents(({ type, containerId }) => {
    if (containerId === id && type === 'stopped') ended.abort();
  });
  try {
    // It may have ended before anybody listened.
    const { state } = await runtime.containerStatus(id);
    if (state === 'exited') return;
    await sleep(clock, seconds * 1000, AbortSignal.any([signal, ended.signal]));
  } catch (error) {
    if (signal.aborted) throw abortError(signal, `sleep hook of container ${container.name}`);
    if (!ended.signal.aborted) throw error;
  } finally {
    stopListening();
  }
}

/** Any answer counts: kubelet discards the status. */
async function httpHook(
  context: ActionContext,
  container: PodContainer,
  action: NonNullable<Hook['httpGet']>,
  signal: AbortSignal,
): Promise<void> {
  const host = action.host || context.observed.sandboxes[0]?.ips[0] || context.hostIps()[0];
  if (host === undefined) throw new KeelsonError('FAILED_PRECONDITION', 'the pod has no address yet');
  const url = urlOf(container, action, host);
  const headers = headersOf(action, 'lifecycle');
  try {
    await httpGet(requestTo(url, headers), signal);
  } catch (error) {
    if (signal.aborted) throw abortError(signal, `hook of container ${container.name}`);
    if (url.protocol !== 'https:' || !isPlainHttp(error)) throw error;
    // Hooks were once asked by http whatever their scheme said; such servers are still around.
    url.protocol = 'http:';
    const plain = Object.fromEntries(
      Object.entries(headers).filter(([name]) => name.toLowerCase() !== 'authorization'),
    );
    await httpGet(requestTo(url, plain), signal);
    tell(
      context,
      undefined,
      'Warning',
      'LifecycleHTTPFallback',
      `request to HTTPS lifecycle hook ${url.host} got HTTP response, retry with HTTP succeeded`,
    );
  }
}

/** OpenSSL's words for a server that answered without TLS. */
function isPlainHttp(error: unknown): boolean {
  const { code, message } = error as { readonly code?: string; readonly message?: string };
  return (
    code === 'ERR_SSL_WRONG_VERSION_NUMBER' ||
    code === 'ERR_SSL_HTTP_REQUEST' ||
    (code === 'EPROTO' && /wrong version number|http request/i.test(message ?? ''))
  );
}
