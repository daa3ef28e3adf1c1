/** `keelson runtime` serves the verbs: a pod made over the CRI is seen, and where nothing runs that is said. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { criClient } from '../../cri/client.ts';
import { waitFor } from '../../peers/process.ts';
import { cannotRun, layOutMachine, tearDown } from '../../runtime/machine.ts';
import { cli, ended } from './runtime_stage.ts';

test('keelson runtime answers the command line', { skip: cannotRun }, async (t) => {
  const machine = await layOutMachine();
  t.after(() => tearDown(machine));
  const configFile = join(machine.root, 'config.yaml');
  writeFileSync(
    configFile,
    `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
podLogsDir: ${machine.logs}
keelson:
  runDir: ${machine.runDir}
  stateDir: ${machine.stateDir}
  kubeletDir: ${join(machine.root, 'kubelet')}
  containerLogsDir: ${join(machine.root, 'containers')}
  cniConfDirs: [${machine.cniConf}]
  cniCacheDir: ${machine.cniCache}
`,
  );
  const run = (verb: string, ...args: string[]) => {
    const words = [...cli.slice(1), verb, '--config', configFile, ...args];
    return ended(spawn(cli[0]!, words, { stdio: ['ignore', 'pipe', 'pipe'] }));
  };
  const nobody = await run('ps');
  assert.equal(nobody.code, 1);
  assert.match(nobody.stderr, /^keelson: no agent listens on .*control\.sock \(start 'keelson agent' or/);

  const daemon = spawn(cli[0]!, [...cli.slice(1), 'runtime', '--config', configFile], {
    stdio: ['ignore', 'ignore', 'ignore'],
  });
  t.after(() => void daemon.kill('SIGKILL'));
  const socket = join(machine.runDir, 'keelson.sock');
  await waitFor('the CRI socket', async () => existsSync(socket) || undefined, { deadlineMs: 30_000 });
  const cri = criClient(socket);
  t.after(() => cri.close());
  const { podSandboxId } = await cri.call('RunPodSandbox', {
    config: {
      metadata: { name: 'pod', uid: 'uid-1', namespace: 'default' },
      logDirectory: join(machine.logs, 'uid-1'),
      linux: {
        cgroupParent: `${machine.cgroup}/uid-1`,
        securityContext: { namespaceOptions: { network: 'NODE', pid: 'CONTAINER' } },
      },
    },
  });
  const pods = await run('pods', '--json');
  assert.deepEqual(
    JSON.parse(pods.stdout).pods.map(({ id }: { id: string }) => id),
    [podSandboxId],
    pods.stderr,
  );
  const removed = await run('rm', '--pod', '-f', 'default/pod');
  assert.equal(removed.code, 0, removed.stderr);
  assert.equal((await run('pods', '-aq')).stdout, '');
  daemon.kill('SIGTERM');
  await once(daemon, 'exit');
});
