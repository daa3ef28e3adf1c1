/** A process that uses the runtime on the folders in its first argument until it is killed, telling what it has done. */
import { configsFor, type MachinePaths, openRuntime } from './machine.ts';

const paths: MachinePaths = JSON.parse(process.argv[2]!);
const { runtime } = await openRuntime(paths);
const configs = configsFor(paths);
const say = (...words: string[]) => process.stdout.write(`${words.join(' ')}\n`);

const security = { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } as const;
const keeper = await runtime.runPodSandbox(
  configs.sandboxConfig({ metadata: { name: 'keeper', uid: 'keeper', namespace: 'n', attempt: 0 } }),
  '',
);
const kept = await runtime.createContainer(keeper, configs.containerConfig(['sleep', '1000']));
await runtime.startContainer(kept);
const ending = await runtime.createContainer(
  keeper,
  configs.containerConfig(['sh', '-c', 'sleep 0.6; echo last words; exit 9'], {
    metadata: { name: 'ending', attempt: 0 },
  }),
);
await runtime.startContainer(ending);
say('ready', keeper, kept, ending);

/** One pod from beginning to end, over and over. */
async function live(shared: boolean): Promise<void> {
  const pid = shared ? 'pod' : 'container';
  for (;;) {
    const sandbox = await runtime.runPodSandbox(
      configs.sandboxConfig({ linux: { security: { namespaces: { ...security.namespaces, pid } } } }),
      '',
    );
    const id = await runtime.createContainer(
      sandbox,
      configs.containerConfig(['sleep', '1000'], {
        linux: { security: { namespaces: { ...security.namespaces, pid } } },
      }),
    );
    await runtime.startContainer(id);
    await runtime.stopContainer(id, 0);
    await runtime.removePodSandbox(sandbox);
  }
}
await Promise.all([live(false), live(true)]);
