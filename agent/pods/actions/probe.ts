/** Asking a container once whether it is well: exec, tcpSocket, httpGet. */
import { connect } from 'node:net';
import type { RuntimeService } from '../../../runtime/api.ts';
import { abortError, describe } from '../../../runtime/host/errors.ts';
import { makeHttpClient } from '../../../runtime/host/http.ts';
import type { PodContainer } from '../../apiserver/types.ts';

export type Probe = NonNullable<PodContainer['readinessProbe']>;

export interface ProbeAnswer {
  readonly well: boolean;
  /** What is told of a failure. */
  readonly output: string;
}

/** The port of a probe or hook, by number or by a name in the container's ports. */
export function portOf(container: PodContainer, port: string | number): number {
  if (typeof port === 'number') return port;
  return container.ports?.find(({ name }) => name === port)?.containerPort ?? Number(port);
}

function hostInUrl(host: string): string {
  return host.includes(':') ? `[${host}]` : host;
}

/** Never throws for a container that is not well; throws when the caller's own signal aborts. */
export async function probeOnce(
  runtime: RuntimeService,
  container: PodContainer,
  id: string,
  podIp: string,
  probe: Probe,
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  const timeoutMs = (probe.timeoutSeconds ?? 1) * 1000;
  const limited = AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]);
  try {
    if (probe.exec !== undefined)
      return await byExec(runtime, id, probe.exec.command ?? [], timeoutMs, signal);
    if (probe.tcpSocket !== undefined) {
      await byConnect(probe.tcpSocket.host || podIp, portOf(container, probe.tcpSocket.port), limited);
      return { well: true, output: '' };
    }
    if (probe.httpGet !== undefined) return await byGet(container, probe.httpGet, podIp, limited);
    // grpc is not known here: a container is not called sick for a question that was not asked.
    return { well: true, output: '' };
  } catch (error) {
    if (signal.aborted) throw abortError(signal, 'probe');
    return { well: false, output: describe(error) };
  }
}

async function byExec(
  runtime: RuntimeService,
  id: string,
  command: readonly string[],
  timeoutMs: number,
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  const { exitCode, stdout, stderr } = await runtime.execSync(id, command, timeoutMs, signal);
  const output = Buffer.concat([stdout, stderr])
    .subarray(0, 10 * 1024)
    .toString('utf8');
  return { well: exitCode === 0, output };
}

function byConnect(host: string, port: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const socket = connect({ host, port });
    const abort = () => socket.destroy(abortError(signal, `connection to ${host}:${port}`));
    signal.addEventListener('abort', abort, { once: true });
    socket.once('error', reject);
    socket.once('connect', () => {
      socket.destroy();
      resolve();
    });
    socket.once('close', () => signal.removeEventListener('abort', abort));
  });
}

async function byGet(
  container: PodContainer,
  action: NonNullable<Probe['httpGet']>,
  podIp: string,
  signal: AbortSignal,
): Promise<ProbeAnswer> {
  const path = action.path ?? '/';
  const authority = `${hostInUrl(action.host || podIp)}:${portOf(container, action.port)}`;
  const scheme = (action.scheme ?? 'HTTP').toLowerCase();
  const url = new URL(`${scheme}://${authority}${path.startsWith('/') ? '' : '/'}${path}`);
  const headers: Record<string, string> = {
    'user-agent': 'kube-probe/keelson',
    accept: '*/*',
    connection: 'close',
  };
  for (const { name, value } of action.httpHeaders ?? []) headers[name.toLowerCase()] = value;
  // A pod's certificate is not verified, and a connection is not kept: each probe shows what a new client would see.
  const http = makeHttpClient({ tls: { insecure: true }, connections: 1 });
  try {
    const { statusCode, body } = await http.request({ method: 'GET', url, headers, signal });
    await body.dump({ limit: 10 * 1024 });
    const well = statusCode >= 200 && statusCode < 400;
    return { well, output: well ? '' : `HTTP probe failed with statuscode: ${statusCode}` };
  } finally {
    await http.destroy();
  }
}
