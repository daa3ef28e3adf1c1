/** The command line: `keelson <command>`. Says what is wrong in the last line, exits 2 for wrong usage, 1 for failure. */
import { parseArgs } from 'node:util';
import { describe, KeelsonError } from '../runtime/host/errors.ts';
import { version } from './version.ts';

const usage = `keelson ${version}: one process that is a Kubernetes node

  keelson agent [--config FILE] [--kubeconfig FILE] [--hostname-override NAME] [--node-ip ADDRESS]
                [--image-credential-provider-config PATH --image-credential-provider-bin-dir FOLDER]
      Be a node. Without --kubeconfig only the static pods of the configuration's staticPodPath run.
  keelson config check --config FILE
      Read a configuration and say what is wrong with it.
  keelson version
  keelson help

The configuration is a KubeletConfiguration (kubelet.config.k8s.io/v1beta1); see the README.`;

/** A wrong call of the command line. */
function usageError(why: string): KeelsonError {
  return new KeelsonError('INVALID_ARGUMENT', why, { hint: "see 'keelson help'" });
}

async function agent(args: string[]): Promise<void> {
  const { values } = parseArgs({
    args,
    options: {
      config: { type: 'string' },
      kubeconfig: { type: 'string' },
      'hostname-override': { type: 'string' },
      'node-ip': { type: 'string' },
      'image-credential-provider-config': { type: 'string' },
      'image-credential-provider-bin-dir': { type: 'string' },
    },
  });
  const { startAgent } = await import('./main.ts');
  await startAgent({
    configFile: values.config,
    kubeconfigFile: values.kubeconfig,
    nodeName: values['hostname-override'],
    nodeIp: values['node-ip'],
    imageCredentialProviderConfig: values['image-credential-provider-config'],
    imageCredentialProviderBinDir: values['image-credential-provider-bin-dir'],
  });
}

async function config(args: string[]): Promise<void> {
  const [verb, ...rest] = args;
  if (verb !== 'check') throw usageError(`keelson config: unknown command ${verb ?? '(none)'}`);
  const { values } = parseArgs({ args: rest, options: { config: { type: 'string' } } });
  if (values.config === undefined) throw usageError('keelson config check: --config FILE is missing');
  const { loadConfig } = await import('./config/load.ts');
  const loaded = await loadConfig(values.config);
  for (const warning of loaded.warnings) console.log(`warning: ${warning}`);
  console.log(`${values.config} is a valid configuration`);
}

/** Loads all that an agent loads, so that its compiled code is in Node's compile cache. The launcher calls it. */
async function warm(): Promise<void> {
  await Promise.all([import('./main.ts'), import('./config/yaml.ts'), import('node:https')]);
}

const commands: Readonly<Record<string, (args: string[]) => Promise<void>>> = {
  agent,
  config,
  warm,
  version: async () => console.log(`keelson ${version}`),
  help: async () => console.log(usage),
};

async function main(argv: string[]): Promise<void> {
  const [name = 'help', ...args] = argv;
  const verb = name === '--help' || name === '-h' ? 'help' : name === '--version' ? 'version' : name;
  const command = Object.hasOwn(commands, verb) ? commands[verb] : undefined;
  if (command === undefined) throw usageError(`unknown command ${name}`);
  try {
    await command(args);
  } catch (error) {
    const code = (error as { code?: unknown }).code;
    if (typeof code === 'string' && code.startsWith('ERR_PARSE_ARGS'))
      throw usageError((error as Error).message);
    throw error;
  }
}

try {
  await main(process.argv.slice(2));
} catch (error) {
  console.error(`keelson: ${describe(error)}`);
  process.exit(error instanceof KeelsonError && error.code === 'INVALID_ARGUMENT' ? 2 : 1);
}
