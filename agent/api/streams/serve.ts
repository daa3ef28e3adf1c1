/** exec, attach, run and port-forward on the node's API: a pod and a container are found, streaming does the rest. */
import type { IncomingMessage } from 'node:http';
import type { Duplex } from 'node:stream';
import type { RuntimeService } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import type { StreamHandlers } from '../../../runtime/streaming/types.ts';
import type { Pod } from '../../apiserver/types.ts';
import type { StreamRoute, Target } from '../request.ts';
import { findPod, findRunning, findSandbox, hasTerminal } from './find.ts';
import { readPorts, readRunCommand, readStreamOptions } from './options.ts';

export interface StreamsOptions {
  readonly pods: () => readonly Pod[];
  readonly runtime: Pick<RuntimeService, 'listContainers' | 'listPodSandbox' | 'execSync'>;
  /** Loaded with the first stream. */
  readonly handlers: () => Promise<StreamHandlers>;
  /** The uid under which a pod runs: the apiserver knows a static pod by that of its mirror. */
  readonly runningUid?: (uid: string) => string;
}

/** What the route names, with the uid that the pod has here. */
function here<T extends StreamRoute>(route: T, { runningUid }: StreamsOptions): T {
  return route.uid === undefined || runningUid === undefined
    ? route
    : { ...route, uid: runningUid(route.uid) };
}

/**
 * Takes a request over that asks for an upgrade; resolves when its connection has ended. Throws, with the socket as it
 * was, what the request is refused with: INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION and what the runtime throws.
 */
export async function serveStream(
  options: StreamsOptions,
  named: StreamRoute,
  { query }: Target,
  request: IncomingMessage,
  socket: Duplex,
  head: Buffer,
): Promise<void> {
  const { pods, runtime, handlers } = options;
  const route = here(named, options);
  if (route.verb === 'portForward') {
    const ports = readPorts(request.headers, query);
    const podSandboxId = await findSandbox(runtime, findPod(pods(), route), route);
    const { portForward } = await handlers();
    return portForward(request, socket, head, { podSandboxId, ports });
  }
  const streams = readStreamOptions(query);
  const pod = findPod(pods(), route);
  if (route.verb === 'attach') {
    const { namespace, pod: name, container } = route;
    const missing = `container ${container} not found in pod ${name}_${namespace}`;
    const containerId = await findRunning(runtime, pod, route, missing);
    const tty = hasTerminal(pod, route);
    const { attach } = await handlers();
    return attach(request, socket, head, { ...streams, containerId, tty, stderr: streams.stderr && !tty });
  }
  const containerId = await findRunning(runtime, pod, route);
  const command = query.getAll('command');
  if (command.length === 0) throw new KeelsonError('INVALID_ARGUMENT', 'you must specify a command');
  const { exec } = await handlers();
  return exec(request, socket, head, { ...streams, containerId, command });
}

/** `run`: the command's whole output, standard output first. Throws as `serveStream`, and EXEC_FAILED for exit codes. */
export async function runCommand(
  options: StreamsOptions,
  named: StreamRoute,
  { query }: Target,
  signal: AbortSignal,
): Promise<Buffer> {
  const { pods, runtime } = options;
  const route = here(named, options);
  const containerId = await findRunning(runtime, findPod(pods(), route), route);
  const command = readRunCommand(query);
  const { stdout, stderr, exitCode } = await runtime.execSync(containerId, command, 0, signal);
  if (exitCode === 0) return Buffer.concat([stdout, stderr]);
  const said = stderr.subarray(0, 4096).toString('utf8');
  throw new KeelsonError('EXEC_FAILED', `command '${command.join(' ')}' exited with ${exitCode}: ${said}`);
}
