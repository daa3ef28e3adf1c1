/**
 * The command line: `keelson <command>`. Says what is wrong in the last line, exits 2 for wrong usage, 1 for failure; an
 * interrupted command ends by the signal that interrupted it.
 */
import { describe, isError } from '../runtime/host/errors.ts';
import { printable } from './cli/terminal/text.ts';
import { type Command, usageError } from './cli/usage.ts';
import { version } from './version.ts';

const usage = `keelson ${version}: one process that is a Kubernetes node

  keelson agent           be a node
  keelson runtime         be a container runtime for the kubelet of others
  keelson config check    say what is wrong with a configuration

  keelson images          list the images of this node
  keelson pull            make an image present
  keelson rm              remove images, containers or pods
  keelson import          take in images from archives
  keelson export          write images into an archive
  keelson verify          check every layer on disk

  keelson pods            list the pods of this node
  keelson ps              list the containers of this node
  keelson logs            show what a container wrote
  keelson exec            run a command in a container
  keelson attach          join the streams of a container
  keelson port-forward    lead ports of this machine into a pod
  keelson inspect         show all that is known of a container or pod
  keelson stats           show what containers or pods use
  keelson events          show what happens to containers and pods
  keelson stop            end containers or pods

  keelson version
  keelson help [COMMAND]

Commands about images ask the running agent; where none runs, they open the image store themselves.
Commands about containers and pods ask the running agent or 'keelson runtime'.`;

/** Loads all that an agent loads, so that its compiled code is in Node's compile cache. The launcher calls it. */
async function warm(): Promise<void> {
  await Promise.all([
    import('./main.ts'),
    import('./main/warm.ts').then(({ warmRest, warmThreads }) => Promise.all([warmRest(), warmThreads()])),
    import('./config/yaml.ts'),
    import('node:https'),
    import('./metrics/text.ts'),
    ...Object.values(commands).map((load) => load()),
  ]);
}

const commands: Readonly<Record<string, () => Promise<Command>>> = {
  agent: () => import('./cli/agent.ts'),
  runtime: () => import('./cli/runtime.ts'),
  config: () => import('./cli/config.ts'),
  images: () => import('./cli/images.ts'),
  pull: () => import('./cli/pull.ts'),
  rm: () => import('./cli/rm.ts'),
  import: () => import('./cli/import.ts'),
  export: () => import('./cli/export.ts'),
  verify: () => import('./cli/verify.ts'),
  pods: () => import('./cli/containers/pods.ts'),
  ps: () => import('./cli/containers/ps.ts'),
  logs: () => import('./cli/containers/logs.ts'),
  exec: () => import('./cli/containers/exec.ts'),
  attach: () => import('./cli/containers/attach.ts'),
  'port-forward': () => import('./cli/containers/port_forward.ts'),
  inspect: () => import('./cli/containers/inspect.ts'),
  stats: () => import('./cli/containers/stats.ts'),
  events: () => import('./cli/containers/events.ts'),
  stop: () => import('./cli/containers/stop.ts'),
};

function commandOf(name: string): () => Promise<Command> {
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (load === undefined) throw usageError(`unknown command ${name}`);
  return load;
}

/** Whether `args`, up to a `--`, ask for help. */
function asksHelp(args: readonly string[]): boolean {
  const end = args.indexOf('--');
  return args.slice(0, end < 0 ? undefined : end).some((arg) => arg === '--help' || arg === '-h');
}

async function main([name = 'help', ...args]: readonly string[]): Promise<void> {
  if (name === 'version' || name === '--version') return console.log(`keelson ${version}`);
  if (name === 'help' || name === '--help' || name === '-h') {
    const [about] = args;
    return console.log(about === undefined ? usage : (await commandOf(about)()).usage);
  }
  if (name === 'warm') return warm();
  const command = await commandOf(name)();
  // What follows a container's name is of the command that is to run there.
  const own = name === 'exec' ? args.slice(0, args.findIndex((arg) => !arg.startsWith('-')) >>> 0) : args;
  if (asksHelp(own)) return console.log(command.usage);
  try {
    await command.run(args);
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    if (typeof code === 'string' && code.startsWith('ERR_PARSE_ARGS'))
      throw usageError((error as Error).message, name);
    throw error;
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  process.stderr.write(`keelson: ${printable(describe(error))}\n`);
  const { signal, exitCode } = isError(error) ? error.details : {};
  // The shell, and a script's loop above all, shall see that it was interrupted.
  if (typeof signal === 'string' && isError(error, 'ABORTED')) process.kill(process.pid, signal);
  if (typeof exitCode === 'number') process.exit(exitCode);
  process.exit(isError(error, 'INVALID_ARGUMENT') ? 2 : 1);
}
