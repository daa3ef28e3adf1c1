/** Probes against real servers. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { type AddressInfo, createServer as createTcpServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { PodContainer } from '../../../../agent/apiserver/types.ts';
import { probeOnce } from '../../../../agent/pods/actions/probe.ts';
import { healthRequest, verdict } from '../../../../agent/pods/probes/grpc.ts';
import { KeelsonError } from '../../../../runtime/host/errors.ts';
import { makeAuthority } from '../../../peers/certificates.ts';
import { fakeRuntime, handClock } from '../fakes.ts';
import { time } from '../objects.ts';

async function listen(t: TestContext, server: Server, host = '127.0.0.1'): Promise<number> {
  await new Promise<void>((resolve) => server.listen(0, host, resolve));
  t.after(() => {
    server.close();
    (server as { closeAllConnections?: () => void }).closeAllConnections?.();
  });
  return (server.address() as AddressInfo).port;
}

type Probe = NonNullable<PodContainer['livenessProbe']>;
const runtime = fakeRuntime(handClock(time));
const ask = (probe: Probe, container: Partial<PodContainer> = {}, ip = '127.0.0.1') =>
  probeOnce(runtime, { name: 'app', ...container }, 'c0', ip, probe, new AbortController().signal);

test('redirects are followed on the same host only', async (t) => {
  const seen: string[] = [];
  const answer = (request: IncomingMessage, response: ServerResponse) => {
    seen.push(`${request.headers.host} ${request.url}`);
    const to = (location: string, body = '') => response.writeHead(302, { location }).end(body);
    if (request.url === '/here') to('/fine?x=1');
    else if (request.url === '/away') to('http://0.0.0.0/', 'gone away');
    else if (request.url === '/round') to('/round');
    else if (request.url === '/bad') to('/broken');
    else if (request.url === '/broken') response.writeHead(500).end();
    else response.end('fine');
  };
  const port = await listen(t, createServer(answer));
  assert.equal((await ask({ httpGet: { port, path: '/here' } })).result, 'success');
  assert.deepEqual(seen, [`127.0.0.1:${port} /here`, `127.0.0.1:${port} /fine?x=1`]);
  assert.deepEqual(await ask({ httpGet: { port, path: '/away' } }), {
    result: 'warning',
    output: 'Probe terminated redirects, Response body: gone away',
  });
  const round = await ask({ httpGet: { port, path: '/round' } });
  assert.equal(round.result, 'failure');
  assert.match(round.output, /^Get "http:\/\/127\.0\.0\.1:\d+\/round": stopped after 10 redirects$/);
  assert.equal(
    (await ask({ httpGet: { port, path: '/bad' } })).output,
    'HTTP probe failed with statuscode: 500',
  );
});

test('headers: kubelet says who it is, and the probe may say otherwise', async (t) => {
  let last: IncomingMessage | undefined;
  const port = await listen(
    t,
    createServer((request, response) => {
      last = request;
      response.end();
    }),
  );
  await ask({ httpGet: { port, path: 'a b?c=%20' } });
  assert.equal(last!.url, '/a%20b?c=%20');
  assert.match(last!.headers['user-agent']!, /^kube-probe\/1\.\d+$/);
  assert.equal(last!.headers.accept, '*/*');
  assert.equal(last!.headers.host, `127.0.0.1:${port}`);
  const httpHeaders = [
    ...[
      { name: 'Host', value: 'example.org' },
      { name: 'X-A', value: '1' },
      { name: 'x-a', value: '2' },
    ],
    ...[
      { name: 'Accept', value: '' },
      { name: 'User-Agent', value: 'me' },
    ],
  ];
  await ask({ httpGet: { port, httpHeaders } });
  assert.deepEqual(
    ['host', 'x-a', 'accept', 'user-agent'].map((name) => last!.headers[name]),
    ['example.org', '1, 2', undefined, 'me'],
  );
});

test('https without verification, IPv6, and what is not answered', async (t) => {
  const pair = await tlsPair(t);
  const ok: RequestListener = (_request, response) => void response.end('ok');
  const tls = await listen(t, createTlsServer(pair, ok));
  const six = await listen(t, createServer(ok), '::1');
  const mute = await listen(
    t,
    createTcpServer(() => {}),
  );
  const rude = await listen(
    t,
    createTcpServer((socket) => socket.end('220 smtp\r\n')),
  );
  assert.equal((await ask({ httpGet: { port: tls, scheme: 'HTTPS' } })).result, 'success');
  assert.equal((await ask({ httpGet: { port: tls, scheme: 'HTTP' } })).result, 'failure');
  assert.equal((await ask({ httpGet: { port: six } }, {}, '::1')).result, 'success');
  assert.equal((await ask({ tcpSocket: { port: six } }, {}, '::1')).result, 'success');
  const late = await ask({ httpGet: { port: mute }, timeoutSeconds: 1 });
  assert.deepEqual(late, {
    result: 'failure',
    output: `Get "http://127.0.0.1:${mute}/": context deadline exceeded (Client.Timeout exceeded while awaiting headers)`,
  });
  assert.match((await ask({ httpGet: { port: rude } })).output, /malformed HTTP response "220 smtp/);
  assert.equal(
    (await ask({ tcpSocket: { port: 1 } })).output,
    'dial tcp 127.0.0.1:1: connect: connection refused',
  );
  assert.deepEqual(await ask({ httpGet: { port: 'nosuch' } }), {
    result: 'unknown',
    output: 'container app has no port named "nosuch"',
  });
});

/** A certificate that nobody trusts. */
async function tlsPair(t: TestContext): Promise<{ cert: Buffer; key: Buffer }> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-probe-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const { cert, key } = await makeAuthority(folder, 'nobody');
  return { cert: await readFile(cert), key: await readFile(key) };
}

test('exec: its output, its timeout, and what could not be asked', async () => {
  const commands: (readonly string[])[] = [];
  let fail: KeelsonError | undefined;
  const asked = fakeRuntime(handClock(time));
  asked.execSync = async (_id, command) => {
    commands.push(command);
    if (fail !== undefined) throw fail;
    return { exitCode: 1, stdout: Buffer.from('o'.repeat(20_000)), stderr: Buffer.from('e') };
  };
  const container: PodContainer = { name: 'app', env: [{ name: 'A', value: 'b' }, { name: 'C' }] };
  const exec = (probe: Probe) =>
    probeOnce(asked, container, 'c0', '127.0.0.1', probe, new AbortController().signal);
  const sick = await exec({ exec: { command: ['x', '$(A)$(C)'] } });
  assert.deepEqual(commands, [['x', 'b$(C)']]);
  assert.deepEqual([sick.result, sick.output.length], ['failure', 10_240]);
  fail = new KeelsonError('DEADLINE_EXCEEDED', 'late');
  assert.deepEqual(await exec({ exec: { command: ['sleep', '9'] }, timeoutSeconds: 2 }), {
    result: 'failure',
    output: 'command timed out: "sleep 9" timed out after 2s',
  });
  fail = new KeelsonError('EXEC_FAILED', 'no such program');
  commands.length = 0;
  assert.deepEqual(await exec({ exec: { command: ['x'] } }), {
    result: 'unknown',
    output: 'no such program',
  });
  assert.equal(commands.length, 3);
});

test('grpc: what a health server says, and a server that is none', async (t) => {
  const { Server: GrpcServer, ServerCredentials, status } = await import('@grpc/grpc-js');
  const server = new GrpcServer();
  let service = '';
  const states: Readonly<Record<string, number>> = { '': 1, up: 1, down: 2 };
  const text = (bytes: Buffer) => bytes;
  server.register(
    '/grpc.health.v1.Health/Check',
    (call: { request: Buffer }, answer: (error: object | null, value?: Buffer) => void) => {
      service = call.request.subarray(2).toString();
      if (service === 'slow') return;
      const state = states[service];
      if (state === undefined) answer({ code: status.NOT_FOUND, details: 'unknown service' });
      else answer(null, Buffer.from([8, state]));
    },
    text,
    text,
    'unary',
  );
  const port = await new Promise<number>((resolve, reject) =>
    server.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (error, bound) =>
      error ? reject(error) : resolve(bound),
    ),
  );
  t.after(() => server.forceShutdown());
  const grpc = (name?: string, at = port) => ask({ grpc: { port: at, service: name }, timeoutSeconds: 1 });
  assert.deepEqual(await grpc(), { result: 'success', output: 'service healthy' });
  assert.equal((await grpc('up')).result, 'success');
  assert.equal(service, 'up');
  assert.deepEqual(await grpc('down'), {
    result: 'failure',
    output: 'service unhealthy (responded with "NOT_SERVING")',
  });
  assert.equal(
    (await grpc('else')).output,
    'error: health rpc probe failed: rpc error: code = NotFound desc = unknown service',
  );
  assert.equal((await grpc('slow')).output, 'timeout: health rpc did not complete within 1s');
  assert.match(
    (await grpc('', 1)).output,
    /^error: failed to connect service at "127.0.0.1:1": .*ECONNREFUSED/,
  );
  const mute = await listen(
    t,
    createTcpServer(() => {}),
  );
  assert.match((await grpc('', mute)).output, /^timeout: failed to connect service .* within 1s/);
  const other = new GrpcServer();
  const bare = await new Promise<number>((resolve) =>
    other.bindAsync('127.0.0.1:0', ServerCredentials.createInsecure(), (_error, bound) => resolve(bound)),
  );
  t.after(() => other.forceShutdown());
  assert.match((await grpc('', bare)).output, /does not implement the grpc health protocol/);
});

test('grpc frames and verdicts, case by case', () => {
  assert.deepEqual([...healthRequest('')], [0, 0, 0, 0, 0]);
  assert.deepEqual([...healthRequest('ab')], [0, 0, 0, 0, 4, 10, 2, 97, 98]);
  assert.deepEqual([...healthRequest('x'.repeat(200)).subarray(0, 8)], [0, 0, 0, 0, 203, 10, 200, 1]);
  const serving = Buffer.from([0, 0, 0, 0, 2, 8, 1]);
  assert.equal(verdict({ 'grpc-status': '0' }, serving, '1s').well, true);
  assert.match(verdict({ 'grpc-status': '0' }, Buffer.alloc(5), '1s').output, /"UNKNOWN"/);
  assert.match(
    verdict({ 'grpc-status': '13', 'grpc-message': 'a%20b%zz%ff' }, serving, '1s').output,
    /Internal/,
  );
  assert.match(verdict({ ':status': 502 } as never, serving, '1s').output, /502/);
});
