/** `keelson runtime`: only the container runtime, for the kubelet of others. */
import { parseArgs } from 'node:util';

export const usage = `keelson runtime [--config FILE]

Serve containers over the CRI until SIGTERM or SIGINT, on keelson.criSocket of the configuration (by default keelson.sock
in keelson.runDir): for a kubelet of others, crictl and critest. Containers go on without it. No pods of its own are run.`;

export async function run(args: string[]): Promise<void> {
  const { values } = parseArgs({ args, options: { config: { type: 'string' } } });
  const { startAgent } = await import('../main.ts');
  await startAgent({
    configFile: values.config,
    kubeconfigFile: undefined,
    nodeName: undefined,
    nodeIp: undefined,
    imageCredentialProviderConfig: undefined,
    imageCredentialProviderBinDir: undefined,
    runtimeOnly: true,
  });
}
