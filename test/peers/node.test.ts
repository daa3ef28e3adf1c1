/** The test node's own bookkeeping: it sees what a node leaves on the machine, and removes it. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { test } from 'node:test';
import { exec } from '../../runtime/host/exec.ts';
import { mount } from '../../runtime/host/syscalls.ts';
import { cgroupHierarchies, cgroupsNamed, links, mountsBelow, natRules, processesNaming } from './machine.ts';
import { startNode } from './node.ts';
import { startDaemon, waitFor } from './process.ts';

const run = (program: string, ...args: string[]) => exec(program, args, { deadlineMs: 20_000 });
const skip = process.getuid?.() === 0 ? false : 'needs root';

test('everything of a node is listed, and removed whatever state it is in', { skip }, async (t) => {
  const node = await startNode({ start: false });
  t.after(() => node.cleanup());
  const { paths } = node;
  const network = `keelson-test-${node.cgroupRoot.slice(-6)}`;
  assert.deepEqual(await node.traces(), []);

  // Mounts upon mounts, as volumes and pinned namespaces are.
  const target = join(paths.kubeletDir, 'pods/some-uid/volumes/a b');
  await mkdir(target, { recursive: true });
  mount('tmpfs', target, 'tmpfs', 0, 'size=64k');
  await mkdir(join(target, 'inner'));
  mount('tmpfs', join(target, 'inner'), 'tmpfs', 0, 'size=64k');
  // A process in a cgroup of a pod, and one that only names the folder.
  const [hierarchy] = await cgroupHierarchies();
  const cgroup = join(hierarchy!, node.cgroupRoot, 'kubepods/besteffort/podsome-uid');
  await mkdir(cgroup, { recursive: true });
  const held = spawn('sleep', ['1000'], { stdio: 'ignore' });
  const named = spawn('sh', ['-c', 'sleep 1000; true', paths.folder], { stdio: 'ignore' });
  await Promise.all([once(held, 'spawn'), once(named, 'spawn')]);
  await writeFile(join(cgroup, 'cgroup.procs'), String(held.pid));
  // A network with an address and a host port.
  await run('ip', 'link', 'add', node.bridge, 'type', 'bridge');
  await run('ip', 'link', 'add', `${node.bridge}v`, 'type', 'veth', 'peer', 'name', `${node.bridge}w`);
  await run('ip', 'link', 'set', `${node.bridge}v`, 'master', node.bridge);
  const chain = `CNI-DN-${node.cgroupRoot.slice(-6)}0123456789`;
  const comment = `dnat name: "${network}" id: "abc"`;
  await run('iptables', '-w', '-t', 'nat', '-N', chain);
  const parent = `CNI-HOSTPORT-KT-${node.cgroupRoot.slice(-6)}`;
  await run('iptables', '-w', '-t', 'nat', '-N', parent);
  t.after(() => run('iptables', '-w', '-t', 'nat', '-X', parent));
  await run('iptables', '-w', '-t', 'nat', '-A', parent, '-m', 'comment', '--comment', comment, '-j', chain);
  await mkdir(join(paths.ipamDir, network), { recursive: true });
  await writeFile(join(paths.ipamDir, network, `${node.subnet}.7`), 'abc\neth0');

  const seen = (await node.traces()).map((trace) => trace.replace(/^process \d+/, 'process'));
  const wanted = [
    `address ${node.subnet}.7`,
    `cgroup ${cgroup}`,
    `link ${node.bridge}v`,
    'mount kubelet/pods/some-uid/volumes/a b',
    'mount kubelet/pods/some-uid/volumes/a b/inner',
    'pod folder some-uid',
    'process sleep 1000',
    `process sh -c sleep 1000; true ${paths.folder}`,
  ];
  for (const line of wanted) assert.ok(seen.includes(line), `${line} is not among\n${seen.join('\n')}`);
  assert.equal(seen.filter((line) => line.startsWith('firewall ')).length, 1, seen.join('\n'));
  await assert.rejects(node.tracesBecome([], 300), /left behind:\naddress /);

  await node.cleanup();
  assert.deepEqual(await mountsBelow(paths.folder), []);
  assert.deepEqual(await processesNaming(paths.folder), []);
  assert.ok(!(await cgroupsNamed('keelson-test')).includes(basename(node.cgroupRoot)));
  assert.deepEqual(
    (await links()).filter(({ name }) => name.startsWith(node.bridge)),
    [],
  );
  assert.deepEqual(
    (await natRules()).filter((rule) => rule.includes(network) || rule.includes(chain)),
    [],
  );
  assert.equal(existsSync(paths.folder), false);
  assert.equal(held.signalCode ?? (await once(held, 'exit'))[1], 'SIGKILL');
});

test('two nodes share nothing', { skip }, async (t) => {
  const nodes = await Promise.all([startNode({ start: false }), startNode({ start: false })]);
  t.after(() => Promise.all(nodes.map((node) => node.cleanup())));
  const [a, b] = nodes.map((node) => [
    node.name,
    node.cgroupRoot,
    node.bridge,
    node.subnet,
    node.ports.api,
    node.paths.folder,
  ]);
  for (const [index, value] of a!.entries()) assert.notEqual(value, b![index]);
});

test('a daemon dies with the process that started it, and its end is told', { skip }, async (t) => {
  const node = await startNode({ start: false });
  t.after(() => node.cleanup());
  const log = join(node.paths.folder, 'daemon.log');
  const process_ = new URL('./process.ts', import.meta.url).href;
  const script = `
    const { startDaemon } = await import(${JSON.stringify(process_)});
    const daemon = await startDaemon('sleep', ['1000'], { logFile: ${JSON.stringify(log)} });
    console.log(daemon.pid);
    process.kill(process.pid, 'SIGKILL');`;
  const { stdout, code } = await exec(process.execPath, ['--input-type=module', '-e', script], {
    deadlineMs: 20_000,
    okCodes: 'any',
  });
  assert.equal(code, 137);
  const pid = Number(stdout.toString());
  await waitFor('the daemon to be gone', async () => (existsSync(`/proc/${pid}`) ? undefined : true), {
    deadlineMs: 10_000,
  });

  const failing = await startDaemon('sh', ['-c', 'echo because; exit 3'], { logFile: log });
  assert.equal(await failing.ended, 'exit code 3');
  await assert.rejects(
    waitFor('it', async () => undefined, { deadlineMs: 10_000, daemon: failing }),
    /it: the program ended with exit code 3\n.*\nbecause/,
  );
  assert.equal(await readFile(log, 'utf8'), 'because\n');
  const deaf = await startDaemon('sh', ['-c', 'trap "" TERM; echo up; while :; do sleep 0.1; done'], {
    logFile: log,
  });
  await waitFor('its trap', async () => (await deaf.tail()).includes('up') || undefined, {
    deadlineMs: 10_000,
  });
  await deaf.stop(100);
  assert.equal(deaf.endedBy, 'SIGKILL');
});
