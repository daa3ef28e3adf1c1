/** Probes: thresholds, order, and what they do to a pod. */
import assert from 'node:assert/strict';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { type TestContext, test } from 'node:test';
import type { PodContainer } from '../../../agent/apiserver/types.ts';
import { probeOnce } from '../../../agent/pods/actions/probe.ts';
import type { ProbeResult } from '../../../agent/pods/plan/memory.ts';
import { makeProbeRoom, makeProber } from '../../../agent/pods/prober.ts';
import { fakeRuntime, handClock } from './fakes.ts';
import { makeContainer, makePod, time } from './objects.ts';

const exec = { exec: { command: ['ask'] }, periodSeconds: 10 };

function world(container: PodContainer) {
  const clock = handClock(time);
  const runtime = fakeRuntime(clock);
  let code = 0;
  runtime.execSync = async () => ({ stdout: Buffer.from('sick'), stderr: Buffer.alloc(0), exitCode: code });
  const results: ProbeResult[] = [];
  const unhealthy: string[] = [];
  const prober = makeProber({
    runtime,
    clock,
    onResult: (_id, result) => results.push(result),
    onTell: (_container, reason, message) =>
      unhealthy.push(reason === 'Unhealthy' ? message : `${reason} ${message}`),
  });
  const pod = makePod({ containers: [container] });
  const begin = (wasStarted = false) =>
    prober.sync(pod, [makeContainer('c0', container, 'running')], '127.0.0.1', () => wasStarted);
  return { clock, prober, pod, results, unhealthy, begin, answer: (next: number) => (code = next) };
}

test('readiness follows the answers, with its thresholds', async () => {
  const { clock, results, begin, answer, unhealthy } = world({
    name: 'app',
    readinessProbe: { ...exec, failureThreshold: 2, successThreshold: 2, initialDelaySeconds: 5 },
  });
  begin();
  await clock.advance(4000);
  assert.deepEqual([...results], [{ started: true }]);
  await clock.advance(2000);
  assert.equal(results.at(-1)?.ready, undefined, 'one good answer is not enough');
  await clock.advance(10_000);
  assert.equal(results.at(-1)?.ready, true);
  answer(1);
  await clock.advance(10_000);
  assert.equal(results.at(-1)?.ready, true);
  await clock.advance(10_000);
  assert.equal(results.at(-1)?.ready, false);
  assert.deepEqual(unhealthy, ['Readiness probe failed: sick', 'Readiness probe failed: sick']);
});

test('a container is killed after the threshold, and not asked again', async () => {
  const { clock, results, begin, answer, unhealthy } = world({ name: 'app', livenessProbe: exec });
  begin();
  answer(1);
  await clock.advance(19_000);
  assert.equal(results.at(-1)?.failed, undefined);
  await clock.advance(60_000);
  assert.equal(results.at(-1)?.failed, 'liveness');
  assert.equal(unhealthy.length, 3);
});

test('the startup probe comes before the others, unless the container had started before', async () => {
  const container = { name: 'app', startupProbe: exec, readinessProbe: exec };
  const first = world(container);
  first.answer(1);
  first.begin();
  await first.clock.advance(10_000);
  assert.deepEqual(first.results, []);
  first.answer(0);
  await first.clock.advance(10_000);
  assert.deepEqual(first.results.at(-1), { started: true, ready: true });
  const second = world(container);
  second.begin(true);
  assert.deepEqual(second.results, [{ started: true }]);
});

test('a container that is gone is not asked any more', async () => {
  const { clock, prober, pod, unhealthy, begin, answer } = world({ name: 'app', livenessProbe: exec });
  begin();
  answer(1);
  await clock.advance(1000);
  prober.sync(pod, [], '', () => false);
  await clock.advance(60_000);
  assert.equal(unhealthy.length, 1);
});

test('what could not be asked says nothing of the container', async () => {
  const { clock, prober, pod, results, unhealthy } = world({
    name: 'app',
    livenessProbe: { httpGet: { port: 'x' } },
  });
  prober.sync(
    pod,
    [makeContainer('c0', { name: 'app', livenessProbe: { httpGet: { port: 'x' } } }, 'running')],
    '',
    () => false,
  );
  await clock.advance(100_000);
  assert.equal(results.at(-1)?.failed, undefined);
  assert.match(unhealthy[0]!, /^Liveness probe errored and resulted in unknown state: /);
});

test('a pod on its way out is asked for its readiness only', async () => {
  const container = { name: 'app', livenessProbe: exec, readinessProbe: { ...exec, failureThreshold: 1 } };
  const { clock, prober, pod, results, unhealthy, begin, answer } = world(container);
  begin();
  await clock.advance(1000);
  assert.equal(results.at(-1)?.ready, true);
  const running = [makeContainer('c0', container, 'running')];
  prober.sync(pod, running, '', () => false, true);
  answer(1);
  await clock.advance(60_000);
  assert.deepEqual(results.at(-1), { started: true, ready: false });
  assert.ok(unhealthy.length > 0 && unhealthy.every((message) => message.startsWith('Readiness')));
});

test('containers that were there before the agent are asked at random times within the first period', async () => {
  const clock = handClock(time);
  const runtime = fakeRuntime(clock);
  const asked: number[] = [];
  runtime.execSync = async () => {
    asked.push(clock.now() - time);
    return { stdout: Buffer.alloc(0), stderr: Buffer.alloc(0), exitCode: 0 };
  };
  const room = { ...makeProbeRoom(clock, () => 0.5), startedAt: time + 1 };
  const container = { name: 'app', readinessProbe: exec };
  const prober = makeProber({ runtime, clock, room, onResult: () => {}, onTell: () => {} });
  const pod = makePod({ containers: [container] });
  prober.sync(
    pod,
    [{ ...makeContainer('c0', container, 'running'), startedAt: time - 60_000 }],
    '',
    () => true,
  );
  await clock.advance(26_000);
  assert.deepEqual(asked, [5000, 15_000, 25_000]);
});

test('probes are counted by kind and result until the pod is gone', async () => {
  const clock = handClock(time);
  const runtime = fakeRuntime(clock);
  let exitCode = 0;
  runtime.execSync = async () => ({ stdout: Buffer.alloc(0), stderr: Buffer.alloc(0), exitCode });
  const room = makeProbeRoom(clock, () => 0);
  const container = { name: 'app', livenessProbe: exec, readinessProbe: exec };
  const prober = makeProber({ runtime, clock, room, onResult: () => {}, onTell: () => {} });
  const pod = makePod({ containers: [container] });
  prober.sync(pod, [makeContainer('c0', container, 'running')], '', () => false);
  await clock.advance(15_000);
  exitCode = 1;
  await clock.advance(10_000);
  const [total, durations] = await room.counts.source.families();
  assert.deepEqual(
    total!.samples
      .map(({ labels, value }) => `${labels?.['probe_type']} ${labels?.['result']} ${value}`)
      .sort(),
    ['Liveness failed 1', 'Liveness successful 2', 'Readiness failed 1', 'Readiness successful 2'],
  );
  assert.equal(total!.samples[0]!.labels?.['pod_uid'], pod.metadata?.uid);
  assert.equal(durations!.samples.filter(({ suffix }) => suffix === '_count')[0]?.value, 2);
  prober.close();
  assert.deepEqual(
    (await room.counts.source.families()).flatMap(({ samples }) => samples),
    [],
  );
});

async function listen(t: TestContext, status: number): Promise<number> {
  const server: Server = createServer((request, response) => {
    response.statusCode = request.url === '/slow' ? 200 : status;
    if (request.url !== '/slow') response.end();
  });
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return (server.address() as AddressInfo).port;
}

test('httpGet and tcpSocket, by number and by name', async (t) => {
  const good = await listen(t, 204);
  const bad = await listen(t, 503);
  const runtime = fakeRuntime(handClock(time));
  const container: PodContainer = { name: 'app', ports: [{ name: 'web', containerPort: good }] };
  const ask = (probe: NonNullable<PodContainer['livenessProbe']>) =>
    probeOnce(runtime, container, 'c0', '127.0.0.1', probe, new AbortController().signal);
  assert.equal((await ask({ httpGet: { port: 'web', path: 'x' } })).result, 'success');
  assert.deepEqual(await ask({ httpGet: { port: bad } }), {
    result: 'failure',
    output: 'HTTP probe failed with statuscode: 503',
  });
  assert.equal((await ask({ httpGet: { port: good, path: '/slow' }, timeoutSeconds: 1 })).result, 'failure');
  assert.equal((await ask({ tcpSocket: { port: 'web' } })).result, 'success');
  assert.equal((await ask({ tcpSocket: { port: 1 } })).result, 'failure');
});
