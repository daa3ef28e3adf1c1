/** Where a command gets its work done: by the running agent over its socket or, where none runs, by this process. */
import { existsSync, watch } from 'node:fs';
import { dirname, join } from 'node:path';
import { systemClock } from '../../runtime/host/clock.ts';
import { abortError, errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { type AgentConfig, loadConfig } from '../config/load.ts';
import { agentListens, connectControl } from '../control/client.ts';
import type { Handlers } from '../control/images.ts';
import { type Control, socketName } from '../control/protocol.ts';

const defaultConfigFile = '/etc/keelson/config.yaml';
/** An agent that has the database but no socket yet is starting: for so long it is waited for. */
const startMs = 15_000;

/**
 * Runs `body` with whoever can do the work. SIGINT, SIGTERM, SIGHUP and a closed standard output abort `signal`; a second
 * signal ends the process at once. Throws ABORTED with `details.signal` for a signal.
 */
export async function withControl<T>(
  configFile: string | undefined,
  body: (control: Control, signal: AbortSignal) => Promise<T>,
  open: (configFile: string | undefined, signal: AbortSignal) => Promise<Session> = openSession,
): Promise<T> {
  const interrupted = new AbortController();
  const stop = (name: NodeJS.Signals) =>
    interrupted.abort(new KeelsonError('ABORTED', `interrupted by ${name}`, { details: { signal: name } }));
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const name of signals) process.once(name, stop);
  const unread = () => interrupted.abort(new KeelsonError('ABORTED', 'nobody reads the output any more'));
  process.stdout.on('error', unread);
  const { signal } = interrupted;
  let session: Session | undefined;
  try {
    session = await open(configFile, signal);
    return await body(session.control, signal);
  } catch (error) {
    if (signal.aborted) throw abortError(signal, 'the command');
    throw error;
  } finally {
    await session?.close();
    for (const name of signals) process.off(name, stop);
  }
}

/** The same for what only a running agent, or `keelson runtime`, can do. Throws UNAVAILABLE where none runs. */
export function withAgent<T>(
  configFile: string | undefined,
  body: (control: Control, signal: AbortSignal) => Promise<T>,
): Promise<T> {
  return withControl(configFile, body, askAgent);
}

async function askAgent(configFile: string | undefined): Promise<Session> {
  const socket = join((await configOf(configFile)).keelson.runDir, socketName);
  if (await agentListens(socket)) return { control: connectControl(socket), close: async () => {} };
  throw new KeelsonError('UNAVAILABLE', `no agent listens on ${socket}`, {
    hint: "start 'keelson agent' or 'keelson runtime', or name its configuration with --config",
  });
}

function configOf(configFile: string | undefined): Promise<AgentConfig> {
  return loadConfig(configFile ?? (existsSync(defaultConfigFile) ? defaultConfigFile : undefined));
}

interface Session {
  readonly control: Control;
  close(): Promise<void>;
}

async function openSession(configFile: string | undefined, signal: AbortSignal): Promise<Session> {
  const config = await configOf(configFile);
  const socket = join(config.keelson.runDir, socketName);
  const agent = { control: connectControl(socket), close: async () => {} };
  if (await agentListens(socket)) return agent;
  try {
    return await openHere(config);
  } catch (error) {
    if (!isError(error, 'DATABASE_LOCKED')) throw error;
    if (await appears(socket, signal)) return agent;
    throw new KeelsonError(
      'DATABASE_LOCKED',
      `${config.keelson.stateDir} is in use, but no agent listens on ${socket}`,
      {
        cause: error,
        hint: 'another command may be at work there, or the agent has another configuration: name it with --config',
      },
    );
  }
}

/**
 * The store in this process, under the database's lock, which is held until the command ends. An agent that is started
 * meanwhile waits for a minute (agent/main.ts), and then ends for its supervisor to start it again.
 */
async function openHere(config: AgentConfig): Promise<Session> {
  const { stateDir } = config.keelson;
  try {
    const { openImageVerbs } = await import('../main/images.ts');
    const { handlers, close } = await openImageVerbs(config);
    const { containerRuntimeEndpoint, imageServiceEndpoint } = config;
    const other = imageServiceEndpoint ?? containerRuntimeEndpoint;
    process.stderr.write(
      other === undefined
        ? `no agent runs: working on ${stateDir} directly; an agent that starts waits for this to end\n`
        : `no agent runs: asking ${other} directly\n`,
    );
    const known: Partial<Handlers> = handlers;
    return {
      control: {
        async call(verb, request, options) {
          const handler = known[verb];
          if (handler !== undefined) return handler(request, options);
          throw new KeelsonError('UNAVAILABLE', `${verb} needs a running agent`);
        },
      },
      close,
    };
  } catch (error) {
    if (!['EACCES', 'EPERM', 'EROFS'].includes(errnoOf(error) ?? '')) throw error;
    throw new KeelsonError('PERMISSION_DENIED', `cannot open ${stateDir}`, {
      cause: error,
      hint: 'run it as root',
    });
  }
}

/** Resolves with whether somebody listens on `socket` within `startMs`. Throws ABORTED. */
async function appears(socket: string, signal: AbortSignal): Promise<boolean> {
  const folder = dirname(socket);
  if (!existsSync(folder)) return agentListens(socket);
  return new Promise((resolve, reject) => {
    const watcher = watch(folder);
    const end = (settle: () => void) => {
      watcher.close();
      cancel();
      signal.removeEventListener('abort', aborted);
      settle();
    };
    const look = () =>
      agentListens(socket).then(
        (found) => found && end(() => resolve(true)),
        (error: unknown) => end(() => reject(error)),
      );
    const aborted = () => end(() => reject(abortError(signal, 'waiting for the agent')));
    const cancel = systemClock.after(startMs, () => end(() => resolve(false)));
    signal.addEventListener('abort', aborted);
    watcher.on('change', () => void look());
    watcher.on('error', () => end(() => resolve(false)));
    void look(); // It may have come before the watch began.
  });
}
