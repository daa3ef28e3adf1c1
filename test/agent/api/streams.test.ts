/** Which container a stream is for: pure parts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findPod, findRunning, findSandbox, hasTerminal } from '../../../agent/api/streams/find.ts';
import { readPorts, readRunCommand, readStreamOptions } from '../../../agent/api/streams/options.ts';
import type { Pod } from '../../../agent/apiserver/types.ts';

const named = (container: string, uid?: string) => ({ namespace: 'shop', pod: 'web', container, uid });
const pod = (uid: string, name = 'web') =>
  ({
    metadata: { name, namespace: 'shop', uid },
    spec: {
      containers: [{ name: 'app' }],
      initContainers: [{ name: 'init', tty: true }],
      ephemeralContainers: [{ name: 'debugger', tty: true }],
    },
  }) as unknown as Pod;

test('pods of the same name: the newest; containers of every kind have their terminal', () => {
  assert.equal(findPod([pod('old'), pod('new'), pod('x', 'other')], named('app')).metadata!.uid, 'new');
  assert.throws(() => findPod([pod('x', 'other')], named('app')), { code: 'NOT_FOUND' });
  assert.throws(() => findPod([pod('x')], { ...named('app'), namespace: 'elsewhere' }), {
    code: 'NOT_FOUND',
  });
  for (const [name, tty] of [
    ['app', false],
    ['init', true],
    ['debugger', true],
  ] as const) {
    assert.equal(hasTerminal(pod('u'), named(name)), tty, name);
  }
  assert.throws(() => hasTerminal(pod('u'), named('none')), { code: 'FAILED_PRECONDITION' });
});

test('the newest running container and ready sandbox; another uid finds nothing', async () => {
  const asked: object[] = [];
  const runtime = {
    async listContainers(filter: object = {}) {
      asked.push(filter);
      return [
        { id: 'old', createdAt: 1 },
        { id: 'new', createdAt: 2 },
      ];
    },
    async listPodSandbox(filter: object = {}) {
      asked.push(filter);
      return [];
    },
  } as unknown as Parameters<typeof findRunning>[0];
  assert.equal(await findRunning(runtime, pod('u'), named('debugger')), 'new');
  assert.deepEqual(asked.pop(), {
    state: 'running',
    labels: { 'io.kubernetes.pod.uid': 'u', 'io.kubernetes.container.name': 'debugger' },
  });
  await assert.rejects(findRunning(runtime, pod('u'), named('app', 'v')), { code: 'FAILED_PRECONDITION' });
  await assert.rejects(findSandbox(runtime, pod('u'), named('', 'v')), { code: 'NOT_FOUND' });
  assert.deepEqual(asked, []);
  await assert.rejects(findSandbox(runtime, pod('u'), named('', 'u')), {
    code: 'FAILED_PRECONDITION',
    message: 'pod not found ("web_shop")',
  });
  assert.deepEqual(asked, [{ state: 'ready', labels: { 'io.kubernetes.pod.uid': 'u' } }]);
});

test('every combination of flags: at least one stream, and no standard error beside a terminal', () => {
  for (let bits = 0; bits < 16; bits++) {
    const query = new URLSearchParams();
    for (const [index, name] of ['input', 'output', 'error', 'tty'].entries()) {
      if (bits & (1 << index)) query.set(name, '1');
    }
    const tty = (bits & 8) !== 0;
    const wanted = {
      stdin: (bits & 1) !== 0,
      stdout: (bits & 2) !== 0,
      stderr: (bits & 4) !== 0 && !tty,
      tty,
    };
    if (wanted.stdin || wanted.stdout || wanted.stderr) assert.deepEqual(readStreamOptions(query), wanted);
    else assert.throws(() => readStreamOptions(query), { code: 'INVALID_ARGUMENT' });
  }
});

test('ports of hostile requests are read or refused, and no more than a hundred', () => {
  const headers = { upgrade: 'WebSocket' };
  const read = (...ports: string[]) =>
    readPorts(headers, new URLSearchParams(ports.map((port) => ['port', port])));
  assert.deepEqual(read('1', '65535,80'), [1, 65535, 80]);
  for (const ports of [
    ['-1'],
    ['1e3'],
    ['0x50'],
    [' 80'],
    ['80,'],
    ['99999'],
    ['1'.repeat(10_000)],
    ['80', ''],
  ]) {
    assert.throws(() => read(...ports), { code: 'INVALID_ARGUMENT' }, ports.join());
  }
  assert.throws(() => read(Array(101).fill('1').join()), { code: 'INVALID_ARGUMENT' });
  assert.deepEqual(readPorts({ upgrade: 'SPDY/3.1' }, new URLSearchParams('port=x')), []);
  assert.deepEqual(readRunCommand(new URLSearchParams('cmd=a b')), ['a', 'b']);
});
