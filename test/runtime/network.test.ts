/** What the runtime and the pod network say to each other. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeCni, type WatchedCni } from '../../cni/network.ts';
import type { PodSandboxConfig } from '../../runtime/api.ts';
import type { Context } from '../../runtime/context.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { makeNetworkSweep } from '../../runtime/recovery.ts';
import { attachmentOf, checkSandboxConfig } from '../../runtime/sandbox_config.ts';
import type { SandboxRecord } from '../../runtime/state.ts';
import { cannotRun, makeMachine, openRuntime } from './machine.ts';

const skip = cannotRun;

const podConfig: PodSandboxConfig = {
  metadata: { name: 'web', uid: 'u1', namespace: 'shop', attempt: 0 },
  hostname: 'web',
  logDirectory: '',
  portMappings: [],
  labels: {},
  annotations: {},
  linux: {
    cgroupParent: '',
    sysctls: {},
    security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } },
  },
};
const attachmentFor = (changes: Partial<PodSandboxConfig>) =>
  attachmentOf({ id: 'c1', config: { ...podConfig, ...changes } } as SandboxRecord);

test('capability arguments come from where the pod has them', () => {
  const annotations = {
    'kubernetes.io/ingress-bandwidth': '10M',
    'kubernetes.io/egress-bandwidth': '1Mi',
    'shop.example/vlan': '7',
  };
  const { args, capabilities } = attachmentFor({
    annotations,
    portMappings: [
      { protocol: 'TCP', containerPort: 80, hostPort: 8080, hostIp: '' },
      { protocol: 'SCTP', containerPort: 81, hostPort: 8081, hostIp: 'fd00::1' },
      { protocol: 'UDP', containerPort: 53 },
    ],
    dns: { servers: ['10.0.0.10'], searches: ['a.b'], options: ['ndots:5'] },
    linux: { ...podConfig.linux, cgroupParent: '/kubepods/pod1' },
  });
  assert.deepEqual(args, { podName: 'web', podNamespace: 'shop', podUid: 'u1' });
  const burst = 2 ** 31 - 1;
  assert.deepEqual(capabilities, {
    portMappings: [
      { hostPort: 8080, containerPort: 80, protocol: 'tcp', hostIP: undefined },
      { hostPort: 8081, containerPort: 81, protocol: 'sctp', hostIP: 'fd00::1' },
    ],
    dns: { servers: ['10.0.0.10'], searches: ['a.b'], options: ['ndots:5'] },
    bandwidth: {
      ingressRate: 10_000_000,
      ingressBurst: burst,
      egressRate: 2 ** 20,
      egressBurst: burst,
    },
    cgroupPath: '/kubepods/pod1',
    'io.kubernetes.cri.pod-annotations': annotations,
  });
});

test('a pod without any of it gives none', () => {
  const { capabilities } = attachmentFor({});
  const given = Object.entries(capabilities).filter(([, value]) => value !== undefined);
  assert.deepEqual(given, []);
});

test('limits that are none, and names that CNI_ARGS cannot carry, are refused', () => {
  const check = (changes: Partial<PodSandboxConfig>) =>
    checkSandboxConfig({ ...podConfig, ...changes }, 'cgroupfs');
  const limit = (value: string) => ({ annotations: { 'kubernetes.io/egress-bandwidth': value } });
  for (const value of ['1k', '1P', '10M', '1e6']) check(limit(value));
  for (const value of ['', '999', '2P', '-10M', 'fast', '10 M']) {
    assert.throws(
      () => check(limit(value)),
      (error) => isError(error, 'INVALID_ARGUMENT') && /egress-bandwidth/.test(error.message),
    );
  }
  const security = { namespaces: { network: 'node', pid: 'container', ipc: 'pod' } } as const;
  check({ ...limit('fast'), linux: { ...podConfig.linux, security } });
  for (const name of ['web;IP=10.0.0.1', 'a=b']) {
    assert.throws(
      () => check({ metadata: { ...podConfig.metadata, name } }),
      (error) => isError(error, 'INVALID_ARGUMENT') && /metadata\.name/.test(error.message),
    );
  }
});

test('the network is swept until it worked once, with what is attached then', async () => {
  let now = 0;
  let outcome: Error | undefined = new KeelsonError('CNI_NOT_CONFIGURED', 'none');
  const asked: string[][] = [];
  const sandboxes = new Map(
    ['a', 'b', 'c'].map((id) => [id, { id, attached: id !== 'b' } as SandboxRecord] as const),
  );
  const context = {
    state: { sandboxes },
    cni: {
      gc: async (valid: readonly { containerId: string; ifName: string }[]) => {
        assert.ok(valid.every(({ ifName }) => ifName === 'eth0'));
        asked.push(valid.map(({ containerId }) => containerId));
        if (outcome !== undefined) throw outcome;
      },
    },
    log: makeLogger('silent'),
    clock: { now: () => now, monotonic: () => now, after: () => () => {} },
  } as unknown as Context;
  const sweep = makeNetworkSweep(context, new AbortController().signal);
  await Promise.all([sweep(), sweep()]);
  assert.deepEqual(asked, [['a', 'c']], 'once at a time');
  await sweep();
  assert.equal(asked.length, 2, 'no network yet: asked again at once');
  outcome = new KeelsonError('CNI_PLUGIN_FAILED', 'no');
  const times: number[] = [];
  for (; now < 1_000_000; now += 1000) {
    const before = asked.length;
    await sweep();
    if (asked.length > before) times.push(now / 1000);
  }
  assert.deepEqual(times, [0, 30, 90, 210, 450, 930], 'after failures less and less often');
  outcome = undefined;
  sandboxes.delete('a');
  now += 3_600_000;
  for (let again = 0; again < 3; again++) await sweep();
  assert.equal(asked.length, 9);
  assert.deepEqual(asked.at(-1), ['c']);
});

test('NetworkReady follows the configuration, and a change wakes those who watch', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const other = {
    ...machine,
    stateDir: join(machine.root, 'other'),
    runDir: join(machine.root, 'other-run'),
  };
  const opened = await openRuntime(other);
  t.after(opened.close);
  const network = async () =>
    (await opened.runtime.status()).find(({ type }) => type === 'NetworkReady') ??
    assert.fail('no condition NetworkReady');
  let wake = () => {};
  t.after((opened.cni as WatchedCni).onChange(() => wake()));
  const until = async (wanted: boolean) => {
    for (;;) {
      const woken = new Promise<void>((resolve) => {
        wake = resolve;
      });
      const found = await network();
      if (found.status === wanted) return found;
      await woken;
    }
  };
  await until(true);
  const conf = join(machine.cniConf, '10-test.conflist');
  const text = readFileSync(conf, 'utf8');
  rmSync(conf);
  const gone = await until(false);
  assert.equal(gone.reason, 'NetworkPluginNotReady');
  assert.ok(gone.message.includes(machine.cniConf));
  writeFileSync(conf, text.replace('"bridge"', '"nosuch"'));
  wake();
  while (!(await network()).message.includes('nosuch')) {
    await new Promise<void>((resolve) => {
      wake = resolve;
    });
  }
  // These plugins do not know 1.1.0: they say so when they are asked for their status.
  writeFileSync(conf, text.replace('1.0.0', '1.1.0'));
  while (!(await network()).message.includes('(STATUS)')) {
    await new Promise<void>((resolve) => {
      wake = resolve;
    });
  }
  writeFileSync(conf, text);
  await until(true);
});

test('a start detaches what no sandbox owns, and nothing else', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const security = { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } as const;
  const config = machine.sandboxConfig({ linux: { security } });
  const sandbox = await machine.runtime.runPodSandbox(config, '');
  const name = `keelson-test-${randomBytes(4).toString('hex')}`;
  execFileSync('ip', ['netns', 'add', name]);
  const cni = makeCni({
    confDirs: [machine.cniConf],
    binDirs: ['/usr/lib/cni'],
    cacheDir: machine.cniCache,
    log: makeLogger('silent'),
  });
  t.after(() => cni.close());
  try {
    await cni.add({
      containerId: 'lost',
      netns: `/run/netns/${name}`,
      ifName: 'eth0',
      args: { podName: 'lost', podNamespace: 'shop', podUid: 'u2' },
      capabilities: {},
    });
  } finally {
    execFileSync('ip', ['netns', 'del', name]);
  }
  const cached = () => readdirSync(join(machine.cniCache, 'results'));
  assert.equal(cached().length, 2);
  await machine.restart();
  while (cached().length > 1) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.ok(cached()[0]!.includes(sandbox));
});
