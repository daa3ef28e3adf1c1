/** The streaming server by HTTP and WebSocket clients, over a runtime that is a script. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { request } from 'node:http';
import { connect } from 'node:net';
import { type TestContext, test } from 'node:test';
import { WebSocket } from 'ws';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { channelProtocol, readMessage, writeMessage } from '../../runtime/streaming/channels.ts';
import { readStreamHeaders } from '../../runtime/streaming/port_forward.ts';
import { makeResizeReader } from '../../runtime/streaming/resize.ts';
import { makeStreaming, type StreamingOptions } from '../../runtime/streaming/server.ts';
import { writeStatus } from '../../runtime/streaming/status.ts';
import { makeTokens } from '../../runtime/streaming/tokens.ts';
import type { ExecRequest, TerminalSize } from '../../runtime/streaming/types.ts';
import { handClock, until } from '../agent/pods/fakes.ts';

const everything: ExecRequest = {
  ...{ containerId: 'c', command: ['x'], stdin: true, stdout: true, stderr: true, tty: false },
};

interface Seen {
  sizes: TerminalSize[];
  gone: number;
}

type Script = Pick<StreamingOptions['runtime'], 'exec' | 'attach' | 'portForward'> & {
  containerStatus(id: string): Promise<{ state: string }>;
  podSandboxStatus(): Promise<{ state: string }>;
};

/** Copies input to output; `fail` fails, a number is the exit code; `wait` waits for the client to leave. */
function setStage(t: TestContext, options: Partial<StreamingOptions> = {}) {
  const clock = handClock(0);
  const seen: Seen = { sizes: [], gone: 0 };
  const runtime: Script = {
    async exec(_id, [what = ''], { stdin, stdout, onResize }, signal) {
      onResize?.((size) => seen.sizes.push(size));
      signal?.addEventListener('abort', () => seen.gone++);
      if (what === 'fail') throw new KeelsonError('EXEC_FAILED', 'no such program');
      if (what === 'wait') {
        await once(signal!, 'abort');
        return 0;
      }
      if (stdin !== undefined && stdout !== undefined) {
        stdin.pipe(stdout);
        await once(stdout, 'finish').catch(() => {});
      }
      return Number(what) || 0;
    },
    async attach() {},
    async portForward(_id, port, io) {
      if (port === 1) throw new KeelsonError('UNAVAILABLE', 'nobody listens');
      io.pipe(io);
      await once(io, 'close');
    },
    containerStatus: async (id) => {
      if (id === 'nobody') throw new KeelsonError('NOT_FOUND', 'no container');
      return { state: id === 'dead' ? 'exited' : 'running' };
    },
    podSandboxStatus: async () => ({ state: 'ready' }),
  };
  const streaming = makeStreaming({
    runtime: runtime as unknown as StreamingOptions['runtime'],
    clock,
    log: makeLogger('silent'),
    ...options,
  });
  t.after(() => streaming.close());
  return { streaming, clock, seen };
}

interface Answer {
  readonly status: number;
  readonly headers: Record<string, unknown>;
  readonly body: string;
}

function ask(url: string, headers: Record<string, string>, method = 'POST'): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const asked = request(url, { method, headers });
    asked.on('response', async (response) => {
      const chunks: Buffer[] = [];
      for await (const chunk of response) chunks.push(chunk as Buffer);
      const body = Buffer.concat(chunks).toString();
      resolve({ status: response.statusCode!, headers: response.headers, body });
    });
    asked.on('upgrade', (response, socket) => {
      socket.destroy();
      resolve({ status: response.statusCode!, headers: response.headers, body: '' });
    });
    asked.on('error', reject);
    asked.end();
  });
}

const spdy = { connection: 'Upgrade', upgrade: 'SPDY/3.1' };

test('a URL can be used once, for what it was made for, within a minute', async (t) => {
  const { streaming, clock } = setStage(t);
  const url = await streaming.exec(everything);
  assert.match(url, /^http:\/\/127\.0\.0\.1:\d+\/exec\/[\w-]{8}$/);
  assert.equal((await ask(url.replace('/exec/', '/attach/'), spdy)).status, 404);
  assert.equal((await ask(url, spdy)).status, 404, 'the wrong use has spent it');
  const protocols = { ...spdy, 'x-stream-protocol-version': 'v9.channel.k8s.io, v4.channel.k8s.io' };
  const second = await streaming.exec(everything);
  const answer = await ask(second, protocols);
  assert.deepEqual(
    [answer.status, answer.headers['x-stream-protocol-version'], answer.headers['upgrade']],
    [101, 'v4.channel.k8s.io', 'SPDY/3.1'],
  );
  assert.equal((await ask(second, protocols)).status, 404);
  const late = await streaming.exec(everything);
  await clock.advance(60_001);
  assert.equal((await ask(late, protocols)).status, 404);
  const strange = await ask(await streaming.exec(everything), {
    ...spdy,
    'x-stream-protocol-version': 'v9.channel.k8s.io',
  });
  assert.equal(strange.status, 403);
  assert.match(strange.body, /client supports v9\.channel\.k8s\.io, server accepts v4\.channel/);
  assert.equal((await ask(await streaming.exec(everything), {}, 'GET')).status, 400);
  assert.equal((await ask(new URL('/elsewhere', url).href, {}, 'GET')).status, 404);
});

test('requests that cannot be are refused before there is a URL', async (t) => {
  const { streaming } = setStage(t);
  const refused = async (
    change: Partial<ExecRequest>,
    code: 'INVALID_ARGUMENT' | 'NOT_FOUND' | 'FAILED_PRECONDITION',
  ) => assert.rejects(streaming.exec({ ...everything, ...change }), (error) => isError(error, code));
  await refused({ tty: true }, 'INVALID_ARGUMENT');
  await refused({ stdin: false, stdout: false, stderr: false }, 'INVALID_ARGUMENT');
  await refused({ command: [] }, 'INVALID_ARGUMENT');
  await refused({ containerId: 'nobody' }, 'NOT_FOUND');
  await refused({ containerId: 'dead' }, 'FAILED_PRECONDITION');
});

/** A WebSocket and what came on it, by channel. */
async function dial(url: string, protocol: string) {
  const ws = new WebSocket(url, protocol === '' ? [] : [protocol]);
  const got = new Map<number, string>();
  const closed = new Promise<number>((resolve) => ws.on('close', resolve));
  ws.on('message', (raw: Buffer) => {
    const message = readMessage(raw, { ...channelProtocol(protocol), halfClose: false });
    assert.ok(message !== 'garbage' && 'channel' in message);
    got.set(message.channel, (got.get(message.channel) ?? '') + message.data.toString());
  });
  await once(ws, 'open');
  const send = (channel: number, text: string) =>
    ws.send(writeMessage(channel, Buffer.from(text), channelProtocol(protocol)));
  return { ws, got, closed, send };
}

test('WebSocket: every protocol, with input, sizes, half-close, exit codes', async (t) => {
  const { streaming, seen } = setStage(t);
  const protocols = [
    ...['v5.channel.k8s.io', 'v4.channel.k8s.io', 'v4.base64.channel.k8s.io', 'v3.channel.k8s.io'],
    ...['v2.channel.k8s.io', 'channel.k8s.io', 'base64.channel.k8s.io', ''],
  ];
  for (const protocol of protocols) {
    seen.sizes = [];
    const { ws, got, closed, send } = await dial(
      await streaming.exec({ ...everything, command: ['3'] }),
      protocol,
    );
    assert.equal(ws.protocol, protocol);
    send(4, '{"Width":80,"Height":24}{"Width":');
    send(4, '100,"Height":30}');
    send(0, 'hello ');
    send(0, 'there');
    await until(() => got.get(1) === 'hello there', `${protocol} echoes`);
    assert.deepEqual(seen.sizes, [
      { width: 80, height: 24 },
      { width: 100, height: 30 },
    ]);
    if (protocol.startsWith('v5')) {
      ws.send(Buffer.from([255, 0]));
      assert.equal(await closed, 1000);
      const status = JSON.parse(got.get(3)!);
      assert.equal(status.reason, 'NonZeroExitCode');
      assert.deepEqual(status.details.causes, [{ reason: 'ExitCode', message: '3' }]);
    } else {
      ws.close();
      await closed;
    }
  }
  const failed = await dial(await streaming.exec({ ...everything, command: ['fail'] }), 'channel.k8s.io');
  await failed.closed;
  assert.equal(
    failed.got.get(3),
    'Internal error occurred: error executing command in container: no such program',
  );
  const strange = new WebSocket(await streaming.exec(everything), ['v9.channel.k8s.io']);
  const [error] = await once(strange, 'error');
  assert.match(String(error), /403/);
});

test('WebSocket: port-forward by channels', async (t) => {
  const { streaming } = setStage(t);
  const url = await streaming.portForward({ podSandboxId: 's', ports: [8080, 1] });
  const { ws, got, send, closed } = await dial(url, 'v4.channel.k8s.io');
  send(0, 'ping');
  const port = (number: number) => Buffer.from([number & 0xff, number >> 8]).toString();
  await until(
    () => got.get(0) === `${port(8080)}ping` && /nobody/.test(got.get(3) ?? ''),
    'both ports answer',
  );
  assert.equal(got.get(1), port(8080));
  assert.equal(got.get(3), `${port(1)}error forwarding port 1 to pod s: nobody listens`);
  ws.terminate();
  await closed;
});

test('clients that vanish, send garbage or never open streams leave nothing', async (t) => {
  const { streaming, seen, clock } = setStage(t);
  await streaming.exec(everything);
  const open = () => readdirSync('/proc/self/fd').length;
  const before = open();
  const wait = { ...everything, command: ['wait'] };
  const gone = await dial(await streaming.exec(wait), 'v5.channel.k8s.io');
  gone.ws.terminate();
  await until(() => seen.gone === 1, 'the command hears of it');
  const garbage = await dial(await streaming.exec(wait), 'v5.channel.k8s.io');
  garbage.ws.send(Buffer.from([77, 1, 2]));
  garbage.ws.send(Buffer.from([255, 1, 2, 3]));
  assert.equal(await garbage.closed, 1002);
  await until(() => seen.gone === 2, 'the command hears of it');
  const raw = async (bytes: Buffer) => {
    const { hostname, port, pathname } = new URL(await streaming.exec(wait));
    const socket = connect(Number(port), hostname);
    socket.write(
      `POST ${pathname} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n`,
    );
    await once(socket, 'data');
    socket.write(bytes);
    socket.on('error', () => {});
    socket.resume();
    return socket;
  };
  const noise = await raw(Buffer.alloc(100, 0xff));
  await once(noise, 'end');
  noise.destroy();
  const silent = await raw(Buffer.alloc(0));
  const closed = once(silent, 'close');
  await clock.advance(30_001);
  await closed;
  for (let index = 0; index < 20; index++) {
    const url = await streaming.exec(wait);
    const broken = { connection: 'Upgrade', upgrade: 'websocket', 'sec-websocket-key': 'x' };
    assert.equal((await ask(url, broken, 'GET')).status, 400);
  }
  await until(() => open() <= before, 'no descriptor is left');
});

test('idle sessions end', async (t) => {
  const { streaming, clock } = setStage(t, { idleMs: 10_000 });
  const { closed, send, got } = await dial(await streaming.exec(everything), 'v5.channel.k8s.io');
  await clock.advance(8000);
  send(0, 'x');
  await until(() => got.get(1) === 'x', 'an echo');
  await clock.advance(8000);
  send(0, 'y');
  await until(() => got.get(1) === 'xy', 'an echo');
  await clock.advance(10_001);
  assert.equal(await closed, 1006);
});

test('closing the server ends its sessions', async (t) => {
  const { streaming } = setStage(t);
  const { closed } = await dial(
    await streaming.exec({ ...everything, command: ['wait'] }),
    'v5.channel.k8s.io',
  );
  await streaming.close();
  await closed;
  await assert.rejects(streaming.exec(everything), (error) => isError(error, 'UNAVAILABLE'));
});

test('tokens are bounded in number', () => {
  const clock = handClock(0);
  let count = 0;
  const tokens = makeTokens<number>(clock, () => String(count++));
  for (let index = 0; index < 1000; index++) tokens.add(index);
  assert.throws(
    () => tokens.add(1),
    (error) => isError(error, 'RESOURCE_EXHAUSTED'),
  );
  assert.equal(tokens.consume('7'), 7);
  assert.equal(tokens.consume('7'), undefined);
  assert.equal(
    tokens.consume('8', () => false),
    undefined,
  );
  tokens.add(1);
});

test('sizes, statuses, messages and headers of clients', () => {
  const read = makeResizeReader();
  assert.deepEqual(read(Buffer.from('\n{"Width":1,"Height":2}\n{"width":3')), [{ width: 1, height: 2 }]);
  assert.deepEqual(read(Buffer.from(',"height":70000}{}{"Width":-1}[]}')), [{ width: 3, height: 0 }]);
  assert.deepEqual(read(Buffer.alloc(5000, 0x20)), []);
  assert.deepEqual(read(Buffer.from('{"Width":1,"Height":2}')), [], 'nothing after what never ends');
  assert.equal(writeStatus({ exitCode: 0 }, 1), undefined);
  assert.equal(writeStatus({ exitCode: 0 }, 4), '{"metadata":{},"status":"Success"}');
  assert.equal(writeStatus({ exitCode: 2 }, 3), 'command terminated with non-zero exit code: exit status 2');
  const v5 = channelProtocol('v5.channel.k8s.io');
  assert.deepEqual(readMessage(Buffer.from([255, 0]), v5), { closes: 0 });
  assert.equal(readMessage(Buffer.from([255]), v5), 'garbage');
  assert.equal(readMessage(Buffer.alloc(0), v5), 'garbage');
  const base64 = channelProtocol('base64.channel.k8s.io');
  assert.equal(readMessage(Buffer.from('0*'), base64), 'garbage');
  assert.equal(readMessage(Buffer.from('xaGk='), base64), 'garbage');
  assert.deepEqual(readMessage(Buffer.from('0aGk='), base64), { channel: 0, data: Buffer.from('hi') });
  const headers = (fields: Record<string, string>) =>
    readStreamHeaders(new Map(Object.entries(fields).map(([name, value]) => [name, [value]])), 7);
  assert.deepEqual(headers({ streamtype: 'data', port: '80', requestid: '4' }), {
    ...{ type: 'data', port: 80, requestId: '4' },
  });
  assert.deepEqual(headers({ streamtype: 'data', port: '80' })?.requestId, '5');
  for (const port of ['', '0', '65536', '-1', '8o', '080000']) {
    assert.equal(headers({ streamtype: 'data', port }), undefined);
  }
  assert.equal(headers({ streamtype: 'stdin', port: '80' }), undefined);
});
