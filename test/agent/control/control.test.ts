/** The real server on a real socket, with an image service that the test moves by hand. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { chmodSync, mkdtempSync, readdirSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { type RequestOptions, request } from 'node:http';
import { createConnection, createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { agentListens, connectControl } from '../../../agent/control/client.ts';
import { imageVerbs } from '../../../agent/control/images.ts';
import { maxRequestBytes } from '../../../agent/control/protocol.ts';
import { startControl } from '../../../agent/control/server.ts';
import type { ImageService } from '../../../runtime/api.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { describe, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { app, busybox, digest, fakeImages, layer, nameless, untilAborted } from './fake-images.ts';

function folder(t: TestContext): string {
  const runDir = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  t.after(() => rmSync(runDir, { recursive: true, force: true }));
  return runDir;
}

async function serve(t: TestContext, runDir = folder(t), images: ImageService = fakeImages()) {
  const server = await startControl({
    runDir,
    handlers: imageVerbs({ images }),
    log: makeLogger('silent'),
    clock: systemClock,
  });
  t.after(() => server.close());
  return server;
}

async function started(t: TestContext) {
  const images = fakeImages();
  const runDir = folder(t);
  const server = await serve(t, runDir, images);
  return { images, runDir, server, path: server.path, control: connectControl(server.path) };
}

const never = new AbortController().signal;

/** Sends bytes as they are; all that comes back. */
function raw(path: string, bytes: string | Buffer): Promise<string> {
  return new Promise((resolve) => {
    const socket = createConnection(path);
    let answer = '';
    socket.setEncoding('utf8');
    socket.on('data', (text) => (answer += text));
    socket.on('error', () => {});
    socket.on('close', () => resolve(answer));
    socket.end(bytes);
  });
}

function send(
  path: string,
  options: RequestOptions,
  body: string,
): Promise<{ status: number; lines: { error: { message: string } }[] }> {
  return new Promise((resolve, reject) => {
    const sent = request({ socketPath: path, method: 'POST', agent: false, ...options }, async (response) => {
      let text = '';
      response.setEncoding('utf8');
      try {
        for await (const chunk of response) text += chunk;
      } catch {}
      resolve({
        status: response.statusCode!,
        lines: text
          .trim()
          .split('\n')
          .map((line) => JSON.parse(line)),
      });
    });
    sent.on('error', reject);
    sent.end(body);
  });
}

test('the socket is for root only, goes at the end, and leaves nothing else behind', async (t) => {
  const { runDir, server, path } = await started(t);
  assert.equal(path, join(runDir, 'control.sock'));
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.ok(statSync(path).isSocket());
  assert.deepEqual(readdirSync(runDir), ['control.sock']);
  assert.equal(await agentListens(path), true);
  await server.close();
  assert.deepEqual(readdirSync(runDir), []);
  assert.equal(await agentListens(path), false);
});

test('other users are refused', { skip: process.getuid?.() !== 0 && 'needs root' }, async (t) => {
  const { runDir, path } = await started(t);
  chmodSync(runDir, 0o755);
  process.seteuid!(65534);
  t.after(() => process.seteuid!(0));
  await assert.rejects(
    agentListens(path),
    (error) => isError(error, 'PERMISSION_DENIED') && /root/.test(describe(error)),
  );
  process.seteuid!(0);
});

test('what a killed agent left is replaced, whatever it is', async (t) => {
  const runDir = folder(t);
  const path = join(runDir, 'control.sock');
  const old = createServer().listen(path);
  await once(old, 'listening');
  // As after a kill: the file stays, nobody accepts.
  rmSync(path);
  writeFileSync(path, '');
  const first = await serve(t, runDir);
  assert.equal(await agentListens(first.path), true);
  await first.close();
  old.close();
  symlinkSync('/nowhere', path);
  const second = await serve(t, runDir);
  assert.ok(statSync(second.path).isSocket());
});

test('a second agent is refused and disturbs nothing', async (t) => {
  const { runDir, control } = await started(t);
  await assert.rejects(
    serve(t, runDir),
    (error) => isError(error, 'UNAVAILABLE') && /another agent/.test(error.message),
  );
  assert.deepEqual(await control.call('images/list', {}, { signal: never }), [busybox, app, nameless]);
  assert.deepEqual(readdirSync(runDir), ['control.sock']);
});

test('a path that cannot be a socket is said', async (t) => {
  const runDir = join(folder(t), 'x'.repeat(120));
  await assert.rejects(serve(t, runDir), (error) => error instanceof Error);
  const { mkdirSync } = await import('node:fs');
  mkdirSync(runDir);
  await assert.rejects(
    serve(t, runDir),
    (error) => isError(error, 'UNAVAILABLE') && /90 characters/.test(error.hint!),
  );
  assert.deepEqual(readdirSync(runDir), []);
});

test('a pull tells each phase and ends with the image', async (t) => {
  const { images, control } = await started(t);
  images.script = async (tell) => {
    for (const digit of ['1', '2']) tell(layer(digit));
    tell(layer('1', { phase: 'downloading', bytes: 10 }));
    tell(layer('1', { phase: 'verifying', bytes: 1_000_000 }));
    tell(layer('1', { phase: 'done', bytes: 1_000_000 }));
    tell(layer('2', { phase: 'present' }));
    return busybox.id;
  };
  const told: string[] = [];
  const result = await control.call(
    'images/pull',
    { image: 'busybox', auths: [{ username: 'u', password: 'p' }] },
    { signal: never, onProgress: ({ digest: d, phase }) => told.push(`${d[7]} ${phase}`) },
  );
  assert.deepEqual(result, busybox);
  assert.deepEqual(told, ['1 waiting', '2 waiting', '1 downloading', '1 verifying', '1 done', '2 present']);
  assert.deepEqual(images.calls, [['pull', 'busybox', [{ username: 'u', password: 'p' }]]]);
});

test('errors come through whole', async (t) => {
  const { images, control } = await started(t);
  const error = new KeelsonError('REGISTRY_UNAVAILABLE', 'no registry answers', {
    hint: 'look at the cable',
    details: { status: 503 },
    cause: new Error('mirror refused', { cause: new Error('ECONNREFUSED') }),
  });
  images.script = async () => {
    throw error;
  };
  await assert.rejects(control.call('images/pull', { image: 'x' }, { signal: never }), (got) => {
    assert.ok(isError(got, 'REGISTRY_UNAVAILABLE'));
    assert.equal(describe(got), describe(error));
    assert.deepEqual(got.details, { status: 503 });
    return true;
  });
  images.script = async () => {
    throw new TypeError('a bug');
  };
  await assert.rejects(
    control.call('images/pull', { image: 'x' }, { signal: never }),
    (got) => isError(got, 'INTERNAL') && got.message === 'a bug',
  );
});

test('a caller that goes aborts its operation, and only its own', async (t) => {
  const { images, control } = await started(t);
  const aborted = Promise.withResolvers<unknown>();
  const release = Promise.withResolvers<void>();
  images.script = async (tell, signal, image) => {
    tell(layer('1'));
    if (image === 'stays') {
      await Promise.race([release.promise, untilAborted(signal)]);
      return busybox.id;
    }
    try {
      return await untilAborted(signal);
    } catch (error) {
      aborted.resolve(error);
      throw error;
    }
  };
  const stays = control.call('images/pull', { image: 'stays' }, { signal: never });
  const leaving = new AbortController();
  await assert.rejects(
    control.call(
      'images/pull',
      { image: 'goes' },
      { signal: leaving.signal, onProgress: () => leaving.abort() },
    ),
    { code: 'ABORTED' },
  );
  assert.ok(isError(await aborted.promise, 'ABORTED'));
  release.resolve();
  assert.deepEqual(await stays, busybox);
});

test('an agent that stops says so to those who wait', async (t) => {
  const { images, control, server } = await started(t);
  images.script = (tell, signal) => {
    tell(layer('1'));
    return untilAborted(signal);
  };
  const begun = Promise.withResolvers<void>();
  const pull = control.call(
    'images/pull',
    { image: 'x' },
    { signal: never, onProgress: () => begun.resolve() },
  );
  await begun.promise;
  await Promise.all([
    assert.rejects(pull, (error) => isError(error, 'ABORTED') && /the agent is stopping/.test(error.message)),
    server.close(),
  ]);
});

test('names, ids and beginnings of ids', async (t) => {
  const { images, control } = await started(t);
  const remove = (image: string) => control.call('images/remove', { image }, { signal: never });
  await assert.rejects(
    remove('abcc'),
    (error) => isError(error, 'FAILED_PRECONDITION') && /its pod/.test(error.hint!),
  );
  assert.deepEqual(images.calls, [['remove', app.id]]);
  await assert.rejects(remove('nothing:1'), { code: 'IMAGE_NOT_PRESENT' });
  await assert.rejects(remove('aaa'), { code: 'IMAGE_NOT_PRESENT' }, 'too short for an id');
  await assert.rejects(remove('sha256:beef'), { code: 'IMAGE_NOT_PRESENT' });
  await assert.rejects(remove('sha256:aaaaaaaag'), { code: 'IMAGE_NAME_INVALID' });
  images.present.push({ ...nameless, id: `sha256:${'f'.repeat(20)}${'0'.repeat(44)}` });
  await assert.rejects(
    remove('ffff'),
    (error) => isError(error, 'INVALID_ARGUMENT') && error.message.includes('ffffffffffff'),
  );
  assert.deepEqual(await remove('sha256:aaaa'), {
    id: busybox.id,
    names: [...busybox.repoTags, ...busybox.repoDigests],
  });
  const exported = await control.call(
    'images/export',
    { images: ['registry.example:5000/team/app:v2', 'abcc'], path: '/x.tar', format: 'oci-archive' },
    { signal: never },
  );
  assert.deepEqual(exported.images, ['registry.example:5000/team/app:v2', app.id]);
  assert.deepEqual(images.calls.at(-1), ['export', exported.images, '/x.tar', 'oci-archive']);
});

test('an image service without archives says so', async (t) => {
  const { importImages, exportImages, verifyImages, ...bare } = fakeImages();
  const { path } = await serve(t, folder(t), bare);
  const control = connectControl(path);
  await assert.rejects(control.call('images/import', { path: '/x' }, { signal: never }), {
    code: 'UNIMPLEMENTED',
  });
  await assert.rejects(control.call('images/verify', {}, { signal: never }), { code: 'UNIMPLEMENTED' });
});

for (const [what, options, body, status, message] of [
  ['an unknown verb', { path: '/v1/images/frobnicate' }, '{}', 404, /knows no verb/],
  ['a name of every object', { path: '/v1/constructor' }, '{}', 404, /knows no verb/],
  ['another path', { path: '/' }, '{}', 404, /knows no verb/],
  ['another method', { path: '/v1/images/list', method: 'GET' }, '', 405, /is a POST/],
  ['no JSON', { path: '/v1/images/pull' }, '{"auths": "hunter2', 400, /not JSON/],
  ['nothing', { path: '/v1/images/pull' }, '', 400, /not JSON/],
  ['a list', { path: '/v1/images/pull' }, '[]', 400, /not a JSON object/],
  ['null', { path: '/v1/images/pull' }, 'null', 400, /not a JSON object/],
  ['no image', { path: '/v1/images/pull' }, '{}', 400, /image: a text/],
  ['a number as image', { path: '/v1/images/pull' }, '{"image":7}', 400, /image: a text/],
  [
    'odd credentials',
    { path: '/v1/images/pull' },
    '{"image":"x","auths":{"a":"hunter2"}}',
    400,
    /auths: a list/,
  ],
  [
    'odd passwords',
    { path: '/v1/images/pull' },
    '{"image":"x","auths":[{"password":{"a":"hunter2"}}]}',
    400,
    /auths/,
  ],
  ['a relative path', { path: '/v1/images/import' }, '{"path":"x.tar"}', 400, /absolute/],
  ['an odd flag', { path: '/v1/images/verify' }, '{"repair":"yes"}', 400, /true or false/],
  [
    'an odd format',
    { path: '/v1/images/export' },
    '{"path":"/x","images":["x"],"format":"zip"}',
    400,
    /oci-layout/,
  ],
  [
    'no images',
    { path: '/v1/images/export' },
    '{"path":"/x","images":[],"format":"oci-layout"}',
    400,
    /images:/,
  ],
  ['too much', { path: '/v1/images/pull' }, 'x'.repeat(maxRequestBytes + 1), 413, /at most/],
] as const) {
  test(`${what} is refused clearly`, async (t) => {
    const { path, control } = await started(t);
    const answer = await send(path, options, body);
    assert.equal(answer.status, status);
    assert.equal(answer.lines.length, 1);
    assert.match(answer.lines[0]!.error.message, message);
    assert.ok(!JSON.stringify(answer).includes('hunter2'), 'no secret in the answer');
    assert.equal((await control.call('images/list', {}, { signal: never })).length, 3);
  });
}

test('a body without end is cut off', async (t) => {
  const { path, control } = await started(t);
  const socket = createConnection(path);
  let answer = '';
  socket.setEncoding('utf8');
  socket.on('data', (text) => (answer += text));
  socket.on('error', () => {});
  socket.write('POST /v1/images/pull HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n');
  const chunk = `10000\r\n${'x'.repeat(0x10000)}\r\n`;
  const more = () => {
    while (!socket.destroyed && socket.write(chunk));
  };
  socket.on('drain', more);
  more();
  await new Promise((resolve) => socket.on('close', resolve));
  // Whoever still writes may lose the answer to it.
  if (answer !== '') assert.match(answer, /^HTTP\/1.1 413 /);
  assert.equal((await control.call('images/list', {}, { signal: never })).length, 3);
});

test('garbage does not disturb the server', async (t) => {
  const { images, path, control } = await started(t);
  let seed = 20_260_101;
  const random = (below: number) => {
    seed = (seed * 1_103_515_245 + 12_345) % 2 ** 31;
    return seed % below;
  };
  const good = 'POST /v1/images/remove HTTP/1.1\r\nhost: x\r\ncontent-length: 15\r\n\r\n{"image":"none"}';
  for (let round = 0; round < 300; round++) {
    const bytes = Buffer.from(good);
    for (let change = 0; change < 1 + random(8); change++) bytes[random(bytes.length)] = random(256);
    await raw(path, round % 3 === 0 ? bytes.subarray(0, random(bytes.length)) : bytes);
  }
  assert.deepEqual(await control.call('images/list', {}, { signal: never }), [busybox, app, nameless]);
  assert.deepEqual(images.calls, []);
});

test('an answer that is none of ours is an error, not a hang', async (t) => {
  for (const answer of [
    '',
    'SSH-2.0-x\r\n',
    'HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n',
    'HTTP/1.1 200 OK\r\n\r\nhello\n',
    'HTTP/1.1 200 OK\r\n\r\n{"progress":{}}\n',
    'HTTP/1.1 200 OK\r\n\r\n7\n',
  ]) {
    const path = join(folder(t), 's');
    const other = createServer((socket) => {
      socket.on('error', () => {});
      socket.once('data', () => socket.end(answer));
    }).listen(path);
    await once(other, 'listening');
    await assert.rejects(connectControl(path).call('images/list', {}, { signal: never }), {
      code: 'UNAVAILABLE',
    });
    other.close();
  }
});

test('a reader that is slow gets the newest, and every layer to its end', async (t) => {
  const { images, path } = await started(t);
  const blocked = Promise.withResolvers<void>();
  const digits = [...'0123456789abcdef'];
  images.script = async (tell) => {
    for (let step = 0; step < 200; step++) {
      for (const digit of digits) {
        for (const phase of ['downloading', 'verifying'] as const) {
          tell(layer(digit, { phase, bytes: step, image: 'i'.repeat(500) }));
        }
      }
    }
    blocked.resolve();
    for (const digit of digits) tell(layer(digit, { phase: 'done', bytes: 1000, image: 'i'.repeat(500) }));
    return busybox.id;
  };
  const socket = createConnection(path);
  socket.pause();
  const body = '{"image":"x"}';
  socket.write(`POST /v1/images/pull HTTP/1.1\r\nhost: x\r\ncontent-length: ${body.length}\r\n\r\n${body}`);
  await blocked.promise;
  let text = '';
  socket.setEncoding('utf8');
  socket.on('data', (chunk) => {
    text += chunk;
    if (text.includes('"result"')) socket.destroy();
  });
  socket.resume();
  await once(socket, 'close');
  const lines = text.split('\n').filter((line) => line.startsWith('{'));
  assert.ok(lines.length < 1000, `${lines.length} lines of 6416`);
  const done = lines.map((line) => JSON.parse(line).progress).filter((step) => step?.phase === 'done');
  assert.deepEqual(new Set(done.map((step) => step.digest)), new Set(digits.map(digest)));
});
