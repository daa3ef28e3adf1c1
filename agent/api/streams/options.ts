/** What a request for a stream asks for: the query of exec, attach, run and port-forward as kubelet reads it. Pure. */
import { KeelsonError } from '../../../runtime/host/errors.ts';

export interface StreamOptions {
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly tty: boolean;
}

/** Longer command lines do not fit into a request. */
const mostPorts = 100;

/**
 * `input`, `output`, `error` and `tty`; all but `1` is no. A terminal has no standard error of its own. Throws
 * INVALID_ARGUMENT where no stream is asked for.
 */
export function readStreamOptions(query: URLSearchParams): StreamOptions {
  const flag = (name: string) => query.get(name) === '1';
  const tty = flag('tty');
  const options = { stdin: flag('input'), stdout: flag('output'), stderr: flag('error') && !tty, tty };
  if (options.stdin || options.stdout || options.stderr) return options;
  throw new KeelsonError('INVALID_ARGUMENT', 'you must specify at least 1 of stdin, stdout, stderr');
}

/**
 * The ports that a WebSocket with channels names in its query; none for the others, where each connection names its
 * own. Throws INVALID_ARGUMENT.
 */
export function readPorts(
  headers: Readonly<Record<string, string | readonly string[] | undefined>>,
  query: URLSearchParams,
): number[] {
  const websocket = String(headers['upgrade'] ?? '').toLowerCase() === 'websocket';
  const protocols = [headers['sec-websocket-protocol'] ?? ''].flat().join();
  if (!websocket || protocols.includes('SPDY/3.1+')) return [];
  const refuse = (message: string) => new KeelsonError('INVALID_ARGUMENT', message);
  const values = query.getAll('port');
  if (values.length === 0) throw refuse('query parameter "port" is required');
  const ports = values.flatMap((value) => {
    if (value === '') throw refuse('query parameter "port" cannot be empty');
    return value.split(',').map((text) => {
      const port = /^\d{1,5}$/.test(text) ? Number(text) : Number.NaN;
      if (!(port >= 0 && port <= 65_535)) throw refuse(`unable to parse ${JSON.stringify(value)} as a port`);
      if (port < 1) throw refuse(`port ${JSON.stringify(value)} must be > 0`);
      return port;
    });
  });
  if (ports.length > mostPorts) throw refuse(`at most ${mostPorts} ports can be forwarded at once`);
  return ports;
}

/** What `run` runs: its words are split at blanks, nothing else. */
export function readRunCommand(query: URLSearchParams): string[] {
  return (query.get('cmd') ?? '').split(' ');
}
