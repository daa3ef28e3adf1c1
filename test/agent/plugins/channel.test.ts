/** Connections to plugins: how many there are, and when they end. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { openChannel } from '../../../agent/plugins/channel.ts';
import { registration } from '../../../agent/plugins/registration.ts';
import { serve } from '../../peers/plugin.ts';

async function place(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-channel-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  return join(folder, 'plugin.sock');
}

test('a plugin that takes connections and says nothing keeps none of them', {
  timeout: 60_000,
}, async (t) => {
  const path = await place(t);
  const sockets: Socket[] = [];
  const server = createServer((socket) => {
    sockets.push(socket);
    socket.resume().on('error', () => {});
  });
  t.after(() => server.close());
  server.listen(path);
  await once(server, 'listening');
  for (let attempt = 1; attempt <= 3; attempt++) {
    const taken = once(server, 'connection');
    const channel = openChannel(path, registration);
    const call = channel.call('GetInfo', {}, { deadlineMs: 500 });
    await assert.rejects(call, { code: 'DEADLINE_EXCEEDED' });
    await taken;
    channel.close();
    const socket = sockets.at(-1)!;
    if (!socket.closed) await once(socket, 'close');
    assert.equal(sockets.length, attempt, 'one connection for each channel');
  }
});

test('what was asked before a channel is closed is still answered', { timeout: 60_000 }, async (t) => {
  const path = await place(t);
  const asked = Promise.withResolvers<void>();
  const answer = Promise.withResolvers<object>();
  const served = await serve(path, [
    {
      service: registration,
      methods: {
        GetInfo() {
          asked.resolve();
          return answer.promise;
        },
      },
    },
  ]);
  t.after(() => served.close());
  const channel = openChannel(path, registration);
  const call = channel.call('GetInfo', {}, { deadlineMs: 30_000 });
  await asked.promise;
  channel.close();
  answer.resolve({ name: 'slow' });
  assert.equal((await call).name, 'slow');
});
