/** A node on cgroup v2 under systemd, with either cgroup driver and runc or crun: what the kernel and systemd see. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile, stat, writeFile } from 'node:fs/promises';
import { basename, dirname, join, resolve } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { Pod } from '../../agent/apiserver/types.ts';
import { cpuWeightOf } from '../../runtime/host/cgroups.ts';
import { exec } from '../../runtime/host/exec.ts';
import { startDevApiserver } from '../peers/apiserver.ts';
import { busyboxImage, pushImage } from '../peers/image.ts';
import { cgroupFolders, processesOf } from '../peers/machine.ts';
import { startNode, type TestNode } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';
import { startRegistry } from '../peers/registry.ts';

const keelson = resolve(dirname(fileURLToPath(import.meta.url)), '../../packaging/keelson');
const skip =
  process.getuid?.() === 0 &&
  existsSync('/run/systemd/system') &&
  existsSync('/sys/fs/cgroup/cgroup.controllers')
    ? false
    : 'needs root, systemd and cgroup v2 (test/vm/run.sh makes such a machine)';

interface Stage {
  readonly node: TestNode;
  readonly image: string;
  readonly kubeconfig: string;
  call<T>(path: string, method?: string, body?: object): Promise<T>;
}

async function stage(t: TestContext, driver: string, runtime: string, start?: false): Promise<Stage> {
  const registry = await startRegistry();
  t.after(() => registry.close());
  const image = `${registry.host}/test/busybox:1`;
  await pushImage(registry.host, 'test/busybox:1', busyboxImage({}));
  const apiserver = await startDevApiserver();
  t.after(() => apiserver.close());
  let kubeconfig = '';
  const node = await startNode({
    start,
    config: {
      cgroupDriver: driver,
      podPidsLimit: 100,
      keelson: { runtimes: { runc: { path: runtime } } },
    },
    async kubeconfig({ folder }) {
      kubeconfig = join(folder, 'kubeconfig');
      const config = {
        apiVersion: 'v1',
        kind: 'Config',
        clusters: [{ name: 'test', cluster: { server: apiserver.url } }],
        users: [{ name: 'node', user: {} }],
        contexts: [{ name: 'test', context: { cluster: 'test', user: 'node' } }],
        'current-context': 'test',
      };
      await writeFile(kubeconfig, JSON.stringify(config), { mode: 0o600 });
      return kubeconfig;
    },
  });
  t.after(() => node.cleanup());
  return {
    node,
    image,
    kubeconfig,
    async call<T>(path: string, method = 'GET', body?: object): Promise<T> {
      const response = await fetch(`${apiserver.url}/api/v1/${path}`, {
        method,
        headers: { 'content-type': 'application/json' },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
      if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${await response.text()}`);
      return (await response.json()) as T;
    },
  };
}

const pods = 'namespaces/default/pods';

function podOf({ node, image }: Stage, name: string, command: string[], resources: object): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace: 'default' },
    spec: {
      nodeName: node.name,
      restartPolicy: 'Never',
      terminationGracePeriodSeconds: 1,
      containers: [{ name: 'main', image, command, resources }],
    },
  };
}

const becomes = (on: Stage, name: string, phase: string) =>
  waitFor(
    `${name} to be ${phase}`,
    async () => {
      const pod = await on.call<Pod>(`${pods}/${name}`);
      return pod.status?.phase === phase ? pod : undefined;
    },
    { deadlineMs: 180_000, everyMs: 200 },
  );

const isGone = (on: Stage, name: string) =>
  waitFor(
    `${name} to be gone`,
    () =>
      on.call(`${pods}/${name}`).then(
        () => undefined,
        (error: Error) => (/ 404 /.test(error.message) ? true : undefined),
      ),
    { deadlineMs: 120_000, everyMs: 200 },
  );

/** The one cgroup of the node that has processes. */
async function filledCgroup(node: TestNode): Promise<string> {
  const filled: string[] = [];
  for (const folder of await cgroupFolders(node.cgroupRoot)) {
    if ((await processesOf(folder)).length > 0) filled.push(folder);
  }
  assert.equal(filled.length, 1, filled.join());
  return filled[0]!;
}

async function filesOf(folder: string): Promise<Record<string, string>> {
  const names = ['cpu.max', 'cpu.weight', 'memory.max', 'pids.max'];
  const values = await Promise.all(names.map((name) => readFile(join(folder, name), 'utf8')));
  return Object.fromEntries(names.map((name, index) => [name, values[index]!.trim()]));
}

/** Loaded units of the node's pods; the slices above them stay. */
async function unitsOf(node: TestNode, containers: readonly string[]): Promise<string[]> {
  const { stdout } = await exec('systemctl', ['list-units', '--all', '--plain', '--no-legend', '--full'], {
    deadlineMs: 60_000,
  });
  const names = stdout
    .toString('utf8')
    .split('\n')
    .map((line) => line.split(' ')[0]!);
  const prefix = node.cgroupRoot.slice(1).replace(/\.slice$/, '');
  return names.filter(
    (name) =>
      (name.startsWith(prefix) && name.includes('-pod')) ||
      containers.some((id) => name === `keelson-${id}.scope`),
  );
}

/** Ids without the runtime's name before them. */
const containersIn = ({ status }: Pod) =>
  (status?.containerStatuses ?? []).map(({ containerID }) => containerID!.replace(/^.*\//, ''));

for (const [driver, runtime] of [
  ['cgroupfs', 'runc'],
  ['systemd', 'runc'],
  ['systemd', 'crun'],
  ['cgroupfs', 'crun'],
] as const) {
  test(`${driver} and ${runtime}: limits, memory running out, nothing left`, { skip }, async (t) => {
    const on = await stage(t, driver, runtime);
    const { node, call } = on;
    const limits = { cpu: '500m', memory: '64Mi' };
    const resources = { requests: { cpu: '250m', memory: '64Mi' }, limits };
    await call(pods, 'POST', podOf(on, 'limited', ['sleep', '3600'], resources));
    const containers = containersIn(await becomes(on, 'limited', 'Running'));
    const group = await filledCgroup(node);
    // crun makes one more group for the processes, with the limits, below the scope.
    const podGroup = dirname(group.replace(/(\.scope)\/container$/, '$1'));
    assert.match(basename(podGroup), /^(pod|keelson_test_.*-kubepods-burstable-pod)/);
    const found = [await filesOf(group), await filesOf(podGroup)];
    t.diagnostic(JSON.stringify(found));
    for (const files of found) {
      assert.equal(files['cpu.max'], '50000 100000');
      assert.equal(files['memory.max'], String(64 << 20));
    }
    assert.equal(found[1]!['cpu.weight'], String(cpuWeightOf(256)));
    assert.equal(found[1]!['pids.max'], '100');
    // Each runtime has its own way from shares to weights.
    assert.ok(Number(found[0]!['cpu.weight']) < 100);
    const units = await unitsOf(node, containers);
    assert.equal(units.length, driver === 'systemd' ? 2 : 0, units.join());

    const greedy = { limits: { memory: '32Mi' } };
    await call(pods, 'POST', podOf(on, 'greedy', ['tail', '/dev/zero'], greedy));
    const killed = await becomes(on, 'greedy', 'Failed');
    const { reason, exitCode } = killed.status!.containerStatuses![0]!.state!.terminated!;
    assert.deepEqual([reason, exitCode], ['OOMKilled', 137]);
    containers.push(...containersIn(killed));

    for (const name of ['limited', 'greedy']) await call(`${pods}/${name}`, 'DELETE');
    for (const name of ['limited', 'greedy']) await isGone(on, name);
    await node.tracesBecome([], 60_000);
    assert.deepEqual(await unitsOf(node, containers), []);
  });
}

test('the agent as a service is killed and started again: its pod goes on', { skip }, async (t) => {
  const unit = `keelson-test-${process.pid}.service`;
  const systemctl = (...args: string[]) => exec('systemctl', args, { deadlineMs: 60_000, okCodes: 'any' });
  // Before the node is cleaned up.
  t.after(() => systemctl('stop', unit).then(() => systemctl('reset-failed', unit)));
  const on = await stage(t, 'systemd', 'runc', false);
  const { node, call } = on;
  const properties = ['KillMode=process', 'Delegate=yes', 'Restart=always', 'RestartSec=1'];
  await exec(
    'systemd-run',
    [
      ...['--unit', unit, ...properties.flatMap((property) => ['-p', property]), keelson, 'agent'],
      ...['--config', node.paths.configFile, '--kubeconfig', on.kubeconfig, '--hostname-override', node.name],
    ],
    { deadlineMs: 60_000 },
  );
  const script = 'i=0; while sleep 1; do i=$((i+1)); echo $i; done';
  await call(pods, 'POST', podOf(on, 'steady', ['sh', '-c', script], {}));
  const pod = await becomes(on, 'steady', 'Running');
  const group = await filledCgroup(node);
  const main = async () =>
    (await systemctl('show', '--value', '-p', 'MainPID', unit)).stdout.toString().trim();
  const pid = await main();
  await systemctl('kill', '--kill-whom=main', '--signal=KILL', unit);
  await waitFor('another agent', async () => (['0', pid].includes(await main()) ? undefined : true), {
    deadlineMs: 60_000,
  });
  assert.equal(await filledCgroup(node), group);
  const log = join(node.paths.podLogsDir, `default_steady_${pod.metadata!.uid}`, 'main/0.log');
  const size = (await stat(log)).size;
  await waitFor('the log to go on', async () => ((await stat(log)).size > size ? true : undefined), {
    deadlineMs: 60_000,
  });
  await call(`${pods}/steady`, 'DELETE');
  await isGone(on, 'steady');
  await node.tracesBecome([], 60_000);
  assert.deepEqual(await unitsOf(node, containersIn(pod)), []);
});
