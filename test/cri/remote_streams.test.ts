/** Streams and stats of another runtime, through the client of the CRI: a keelson over its own socket. */
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { join } from 'node:path';
import { Duplex, duplexPair, PassThrough, Readable, Writable } from 'node:stream';
import { buffer } from 'node:stream/consumers';
import { type TestContext, test } from 'node:test';
import { containerStatsOf, infoOf, sandboxStatsOf } from '../../runtime/cri/client/stats.ts';
import { type CriClient, makeCriClient } from '../../runtime/cri/client.ts';
import { serveCri } from '../../runtime/cri/serve.ts';
import { containerStatsTo, sandboxStatsTo } from '../../runtime/cri/stats_wire.ts';
import { decode } from '../../runtime/cri/wire/decode.ts';
import { encode } from '../../runtime/cri/wire/encode.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import type { TerminalSize } from '../../runtime/streaming/types.ts';
import { cannotRun, fakeImages, makeMachine } from '../runtime/machine.ts';

const log = makeLogger('silent');
const clock = systemClock;

async function setStage(t: TestContext) {
  const machine = await makeMachine(t);
  const socket = join(machine.root, 'cri.sock');
  const images = fakeImages(machine.layer, machine.leases);
  const server = await serveCri({ socket, runtime: machine.runtime, images, log, clock });
  const client: CriClient = makeCriClient({ endpoint: socket, clock, log });
  t.after(async () => {
    client.close();
    await server.close();
  });
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  return { machine, runtime: client.runtime, sandbox };
}

function sink(): { readonly stream: PassThrough; readonly content: Promise<Buffer> } {
  const stream = new PassThrough();
  return { stream, content: buffer(stream) };
}

test('exec: output, exit codes, input, failures, leaving', { skip: cannotRun }, async (t) => {
  const { machine, runtime, sandbox } = await setStage(t);
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const [out, err] = [sink(), sink()];
  const code = await runtime.exec(id, ['sh', '-c', 'echo out; echo err >&2; exit 7'], {
    stdout: out.stream,
    stderr: err.stream,
    tty: false,
  });
  assert.deepEqual(
    [code, (await out.content).toString(), (await err.content).toString()],
    [7, 'out\n', 'err\n'],
  );
  const bytes = randomBytes(5 << 20);
  const back = sink();
  assert.equal(
    await runtime.exec(id, ['cat'], { stdin: Readable.from([bytes]), stdout: back.stream, tty: false }),
    0,
  );
  assert.ok((await back.content).equals(bytes));
  // Input that never ends does not keep a command that does not read it.
  const endless = new Readable({ read: () => {} });
  assert.equal(await runtime.exec(id, ['true'], { stdin: endless, stdout: sink().stream, tty: false }), 0);
  await assert.rejects(runtime.exec(id, ['no-such-program'], { stdout: sink().stream, tty: false }), {
    code: 'EXEC_FAILED',
    message: /no-such-program/,
  });
  await assert.rejects(runtime.exec('nobody', ['true'], { stdout: sink().stream, tty: false }), {
    code: 'NOT_FOUND',
  });
  const leaving = new AbortController();
  const flood = new Writable({
    write(_chunk, _encoding, done) {
      leaving.abort();
      done();
    },
  });
  await assert.rejects(runtime.exec(id, ['yes'], { stdout: flood, tty: false }, leaving.signal), {
    code: 'ABORTED',
  });
});

test('exec and attach with a terminal and its size', { skip: cannotRun }, async (t) => {
  const { machine, runtime, sandbox } = await setStage(t);
  const id = await machine.startContainer(sandbox, ['sh'], {
    metadata: { name: 'shell', attempt: 0 },
    stdin: true,
    tty: true,
  });
  const size: TerminalSize = { width: 91, height: 17 };
  const sized = (listener: (size: TerminalSize) => void) => listener(size);
  const terminal = sink();
  const stdin = new PassThrough();
  const running = runtime.exec(id, ['sh', '-c', 'read line; stty size; tty; exit 3'], {
    ...{ stdin, stdout: terminal.stream, tty: true, onResize: sized },
  });
  stdin.write('go\n');
  assert.equal(await running, 3);
  assert.match((await terminal.content).toString(), /17 91\r\n\/dev\/pts\/\d+\r\n/);

  const attached = sink();
  const keys = new PassThrough();
  const session = runtime.attach(id, { stdin: keys, stdout: attached.stream, tty: true, onResize: sized });
  keys.write('echo at""tached; exit 0\n');
  await session;
  assert.match((await attached.content).toString(), /attached\r\n/);
});

test('port-forward: connections, and a port that nobody listens on', { skip: cannotRun }, async (t) => {
  const { machine, runtime, sandbox } = await setStage(t);
  await machine.startContainer(sandbox, ['nc', '-ll', '-p', '7000', '-e', 'cat']);
  const bytes = randomBytes(1 << 20);
  const listens = async () => {
    for (let tries = 0; ; tries++) {
      const [ours, theirs] = duplexPair();
      ours.on('error', () => {});
      const carried = runtime.portForward(sandbox, 7000, theirs).then(
        () => true,
        () => false,
      );
      ours.write('ping');
      const first = await Promise.race([once(ours, 'data').catch(() => undefined), carried]);
      ours.destroy();
      if (Array.isArray(first)) return;
      assert.ok(tries < 500, 'nobody listens');
    }
  };
  await listens();
  const connect = async () => {
    const [ours, theirs] = duplexPair();
    const carried = runtime.portForward(sandbox, 7000, theirs);
    const received = buffer(ours);
    ours.end(bytes);
    assert.equal(sha(await received), sha(bytes));
    await carried;
  };
  await Promise.all([connect(), connect(), connect()]);
  const refused = new Duplex({ read: () => {}, write: (_chunk, _encoding, done) => done() });
  await assert.rejects(runtime.portForward(sandbox, 7001, refused), {
    code: 'UNAVAILABLE',
    message: /nobody listens on port 7001/,
  });
});

const sha = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex');

test('stats, metrics and details', { skip: cannotRun }, async (t) => {
  const { machine, runtime, sandbox } = await setStage(t);
  const id = await machine.startContainer(sandbox, ['sleep', '1000'], { stdin: true });
  const stats = await runtime.containerStats(id);
  assert.deepEqual([stats.id, stats.podSandboxId], [id, sandbox]);
  assert.ok(stats.cpu!.usageNs > 0 && stats.memory!.usage > 0);
  assert.deepEqual(
    (await runtime.listContainerStats({ podSandboxId: sandbox })).map((one) => [one.id, one.podSandboxId]),
    [[id, sandbox]],
  );
  const pod = await runtime.podSandboxStats(sandbox);
  assert.deepEqual(
    pod.containers.map((one) => one.id),
    [id],
  );
  assert.deepEqual(
    (await runtime.listPodSandboxStats()).map((one) => one.id),
    [sandbox],
  );
  assert.deepEqual(await runtime.metricDescriptors(), machine.runtime.metricDescriptors());
  const [metrics] = await runtime.listPodSandboxMetrics();
  assert.equal(metrics!.podSandboxId, sandbox);
  assert.ok(metrics!.containers[0]!.metrics.some(({ name }) => name === 'container_memory_usage_bytes'));
  const info = (await runtime.containerInfo(id)) as { config: { stdin: boolean }; runtimeSpec: object };
  assert.equal(info.config.stdin, true);
  assert.ok(info.runtimeSpec);
  assert.ok('config' in (await runtime.sandboxInfo(sandbox)));
  await assert.rejects(runtime.containerInfo('nobody'), { code: 'NOT_FOUND' });
});

test('stats over the wire and back are the same', () => {
  const pressure = {
    some: { total: 5, avg10: 1.5, avg60: 2, avg300: 3 },
    full: { total: 4, avg10: 0, avg60: 0.25, avg300: 0 },
  };
  const container = {
    id: 'c',
    podSandboxId: 's',
    metadata: { name: 'main', attempt: 2 },
    labels: { a: 'b' },
    annotations: {},
    cpu: { at: 1000, usageNs: 7, nanoCores: 3, pressure },
    memory: {
      ...{ at: 1000, usage: 9, workingSet: 8, available: 7, rss: 6, pageFaults: 5, majorPageFaults: 4 },
      pressure: undefined,
    },
    swap: { at: 1000, usage: 0, available: undefined },
    io: { at: 1000, pressure },
    writableLayer: { at: 1000, mountpoint: '/x', usedBytes: 3, usedInodes: 2 },
  };
  const wire = decode('ContainerStats', encode('ContainerStats', containerStatsTo(container)));
  assert.deepEqual(containerStatsOf(wire, 's'), container);
  const counters = { rxBytes: 1, rxErrors: 2, txBytes: 3, txErrors: 4 };
  const untold = { rxPackets: 0, rxDropped: 0, txPackets: 0, txDropped: 0 };
  const sandbox = {
    id: 's',
    metadata: { name: 'p', namespace: 'n', uid: 'u', attempt: 0 },
    labels: {},
    annotations: { c: 'd' },
    cpu: container.cpu,
    memory: container.memory,
    io: container.io,
    network: { at: 2000, interfaces: ['eth0', 'eth1'].map((name) => ({ name, ...counters, ...untold })) },
    processes: { at: 2000, count: 11 },
    containers: [container],
  };
  assert.deepEqual(
    sandboxStatsOf(decode('PodSandboxStats', encode('PodSandboxStats', sandboxStatsTo(sandbox)))),
    sandbox,
  );
  // A runtime that tells nothing.
  assert.deepEqual(sandboxStatsOf(decode('PodSandboxStats', Buffer.alloc(0))).containers, []);
  assert.deepEqual(infoOf({ info: '{"pid":1}', other: 'no json', more: '[2]' }), {
    pid: 1,
    other: 'no json',
    more: [2],
  });
});
