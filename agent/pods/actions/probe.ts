/** Asking a container once whether it is well: exec, tcpSocket, httpGet, grpc (kubelet's prober.runProbe). */
import { connect } from 'node:net';
import type { RuntimeService } from '../../../runtime/api.ts';
import { abortError, describe, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import { expand } from '../env.ts';
import { authorityOf, portOf } from '../probes/address.ts';
import { goWords, type HttpGetAction, type HttpRequest, httpGet, requestOf } from '../probes/http_get.ts';

export type Probe = NonNullable<PodContainer['readinessProbe']>;

export interface ProbeAnswer {
  /** `unknown`: the question could not be asked; it says nothing of the container. */
  readonly result: 'success' | 'warning' | 'failure' | 'unknown';
  /** What is told of anything but a success; at most 10 KiB. */
  readonly output: string;
}

const outputBytes = 10 * 1024;
/** Times that a question which could not be asked is asked anew at once, the first included. */
const tries = 3;
const success: ProbeAnswer = { result: 'success', output: '' };

/** Never throws for a container that is not well; throws when the caller's own signal aborts. */
export async function probeOnce(
  runtime: RuntimeService,
  container: PodContainer,
  id: string,
  podIp: string,
  probe: Probe,
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  const timeoutMs = (probe.timeoutSeconds || 1) * 1000;
  for (let count = 1; ; count++) {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(tooLate), timeoutMs);
    const stop = () => limit.abort(signal.reason);
    signal.addEventListener('abort', stop, { once: true });
    try {
      if (signal.aborted) throw abortError(signal, 'probe');
      return await ask(runtime, container, id, podIp, probe, timeoutMs, limit.signal, signal);
    } catch (error) {
      if (signal.aborted) throw abortError(signal, 'probe');
      if (count === tries) return { result: 'unknown', output: describe(error) };
    } finally {
      clearTimeout(timer);
      signal.removeEventListener('abort', stop);
    }
  }
}

/** One object for all: an error with a stack for every probe would cost more than the probe. */
const tooLate = new KeelsonError(
  'DEADLINE_EXCEEDED',
  'context deadline exceeded (Client.Timeout exceeded while awaiting headers)',
);

/** Throws what is `unknown`. `limited` aborts at the timeout or with `signal`. */
async function ask(
  runtime: RuntimeService,
  container: PodContainer,
  id: string,
  podIp: string,
  probe: Probe,
  timeoutMs: number,
  limited: AbortSignal,
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  if (probe.exec !== undefined) {
    // Only variables with a value of their own are known here, as in kubelet.
    const fixed = new Map(
      (container.env ?? []).filter(({ value }) => value).map(({ name, value }) => [name, value!]),
    );
    const command = (probe.exec.command ?? []).map((text) => expand(text, (name) => fixed.get(name)));
    return byExec(runtime, id, command, timeoutMs, signal);
  }
  if (probe.tcpSocket !== undefined)
    return byConnect(probe.tcpSocket.host || podIp, portOf(container, probe.tcpSocket.port), limited);
  if (probe.httpGet !== undefined) {
    const request = requestFor(container, probe.httpGet, podIp);
    let answer: Awaited<ReturnType<typeof httpGet>>;
    try {
      answer = await httpGet(request, limited);
    } catch (error) {
      return { result: 'failure', output: (error as Error).message };
    }
    const { status, body } = answer;
    if (status < 200 || status >= 400)
      return { result: 'failure', output: `HTTP probe failed with statuscode: ${status}` };
    if (status < 300) return success;
    return { result: 'warning', output: `Probe terminated redirects, Response body: ${body}` };
  }
  if (probe.grpc !== undefined) {
    const { grpcHealth } = await import('../probes/grpc.ts');
    const { port, service } = probe.grpc;
    const { well, output } = await grpcHealth(podIp, port, service ?? '', timeoutMs, limited);
    return { result: well ? 'success' : 'failure', output };
  }
  throw new KeelsonError('FAILED_PRECONDITION', `missing probe handler for container ${container.name}`);
}

interface Prepared {
  readonly container: PodContainer;
  readonly podIp: string;
  readonly request: HttpRequest;
}

/** Made once for each probe and address: URL and headers would be a sixth of what asking costs. */
const prepared = new WeakMap<HttpGetAction, Prepared>();

function requestFor(container: PodContainer, action: HttpGetAction, podIp: string): HttpRequest {
  const known = prepared.get(action);
  if (known?.container === container && known.podIp === podIp) return known.request;
  const request = requestOf(container, action, podIp, 'probe');
  prepared.set(action, { container, podIp, request });
  return request;
}

async function byExec(
  runtime: RuntimeService,
  id: string,
  command: readonly string[],
  timeoutMs: number,
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  try {
    const { exitCode, stdout, stderr } = await runtime.execSync(id, command, timeoutMs, signal);
    if (exitCode === 0) return success;
    const output = Buffer.concat([stdout, stderr]).subarray(0, outputBytes).toString('utf8');
    return { result: 'failure', output };
  } catch (error) {
    if (!isError(error, 'DEADLINE_EXCEEDED')) throw error;
    const text = JSON.stringify(command.join(' '));
    return {
      result: 'failure',
      output: `command timed out: ${text} timed out after ${timeoutMs / 1000}s`.slice(0, outputBytes),
    };
  }
}

/** A connection is all that is asked for; it is closed at once. */
function byConnect(host: string, port: number, signal: AbortSignal): Promise<ProbeAnswer> {
  return new Promise((resolve) => {
    const socket = connect({ host, port });
    const end = (answer: ProbeAnswer) => {
      signal.removeEventListener('abort', late);
      socket.destroy();
      resolve(answer);
    };
    const late = () => end({ result: 'failure', output: `dial tcp ${authorityOf(host, port)}: i/o timeout` });
    signal.addEventListener('abort', late, { once: true });
    socket.once('error', (error) => end({ result: 'failure', output: goWords(error) }));
    socket.once('connect', () => end(success));
  });
}
