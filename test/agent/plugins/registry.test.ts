import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { failureOf, openChannel } from '../../../agent/plugins/channel.ts';
import { type Plugin, registration } from '../../../agent/plugins/registration.ts';
import { makePluginRegistry, waitMs } from '../../../agent/plugins/registry.ts';
import { type Clock, systemClock } from '../../../runtime/host/clock.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { grpcError, never, serve, serveRegistration } from '../../peers/plugin.ts';
import { publishedFile, readProto } from '../../peers/published-proto.ts';

interface Stage {
  readonly folder: string;
  readonly events: string[];
  /** Resolves when `event` has been seen as often as `count`. */
  readonly seen: (event: string, count?: number) => Promise<void>;
  readonly socket: (name: string) => string;
}

/** `refusals`: what `validate` and `register` throw, by the plugin's name, once. Waits of half a second take 1 ms. */
async function start(t: TestContext, refusals: Record<string, string> = {}): Promise<Stage> {
  const kubeletDir = await mkdtemp(join(tmpdir(), 'keelson-test-plugins-'));
  const events: string[] = [];
  const waiting = new Set<() => void>();
  const note = (event: string) => {
    events.push(event);
    for (const wake of waiting) wake();
  };
  const refuse = (step: string, name: string) => {
    const key = `${step} ${name}`;
    const why = refusals[key];
    if (why === undefined) return;
    delete refusals[key];
    throw new Error(why);
  };
  const handler = {
    validate: ({ name, versions }: Plugin) => {
      note(`validate ${name} ${versions.join()}`);
      refuse('validate', name);
    },
    register: async ({ name, endpoint }: Plugin) => {
      refuse('register', name);
      note(`register ${name} ${endpoint.split('/').at(-1)}`);
    },
    deregister: async ({ name }: Plugin) => note(`deregister ${name}`),
  };
  const clock: Clock = { ...systemClock, after: (ms, body) => systemClock.after(ms >= 500 ? 1 : ms, body) };
  const registry = makePluginRegistry({
    kubeletDir,
    handlers: { CSIPlugin: handler },
    clock,
    log: makeLogger('silent'),
  });
  t.after(async () => {
    await registry.close();
    await rm(kubeletDir, { recursive: true, force: true });
  });
  await registry.ready;
  const folder = join(kubeletDir, 'plugins_registry');
  return {
    folder,
    events,
    socket: (name) => join(folder, name),
    seen: (event, count = 1) =>
      new Promise((resolve, reject) => {
        const late = setTimeout(
          () => reject(new Error(`no ${count} × ${event} in 20 s, but ${events.join('; ')}`)),
          20_000,
        );
        const look = () => {
          if (events.filter((one) => one === event).length < count) return;
          waiting.delete(look);
          clearTimeout(late);
          resolve();
        };
        waiting.add(look);
        look();
      }),
  };
}

test('a plugin comes, is told so, and goes with its socket', async (t) => {
  const { socket, seen, events } = await start(t);
  const plugin = await serveRegistration(socket('a-reg.sock'), { name: 'a', endpoint: '/run/csi.sock' });
  assert.deepEqual(await plugin.until(1), { pluginRegistered: true, error: '' });
  assert.deepEqual(events, ['validate a 1.0.0', 'register a csi.sock']);
  await plugin.close();
  await seen('deregister a');
});

test('a plugin without an endpoint is spoken with over the socket that it registers with', async (t) => {
  const { socket, seen } = await start(t);
  const plugin = await serveRegistration(socket('a.sock'), { name: 'a' });
  t.after(() => plugin.close());
  await seen('register a a.sock');
});

test('sockets of folders in the folder count, hidden ones and files do not', async (t) => {
  const { folder, socket, seen, events } = await start(t);
  await mkdir(join(folder, 'driver'));
  await writeFile(socket('note.txt'), 'hello');
  const hidden = await serveRegistration(socket('.hidden.sock'), { name: 'hidden' });
  const plugin = await serveRegistration(socket('driver/reg.sock'), { name: 'b' });
  t.after(() => Promise.all([hidden.close(), plugin.close()]));
  await seen('register b reg.sock');
  assert.ok(!events.some((event) => event.includes('hidden')));
  await rm(join(folder, 'driver'), { recursive: true });
  await seen('deregister b');
});

test('other kinds of plugins are told that they are not supported', async (t) => {
  const { socket, events } = await start(t);
  const plugin = await serveRegistration(socket('gpu.sock'), {
    type: 'DevicePlugin',
    name: 'example.com/gpu',
  });
  t.after(() => plugin.close());
  const { pluginRegistered, error } = await plugin.until(1);
  assert.equal(pluginRegistered, false);
  assert.equal(
    error,
    `RegisterPlugin error -- no handler registered for plugin type: DevicePlugin at socket ${socket('gpu.sock')}`,
  );
  assert.deepEqual(events, []);
});

for (const step of ['validate', 'register'] as const) {
  test(`a plugin that ${step} refuses is told why, and tried again`, async (t) => {
    const { socket } = await start(t, { [`${step} a`]: 'not today' });
    const plugin = await serveRegistration(socket('a.sock'), { name: 'a' });
    t.after(() => plugin.close());
    const words = step === 'validate' ? 'validation' : 'registration';
    assert.deepEqual(await plugin.until(1), {
      pluginRegistered: false,
      error: `RegisterPlugin error -- plugin ${words} failed with err: not today`,
    });
    assert.deepEqual(await plugin.until(2), { pluginRegistered: true, error: '' });
  });
}

test('a plugin that does not answer at first is asked again', async (t) => {
  const { socket } = await start(t);
  let calls = 0;
  const plugin = await serveRegistration(
    socket('a.sock'),
    { name: 'a' },
    {
      GetInfo: () => {
        calls++;
        if (calls === 1) throw grpcError('UNAVAILABLE', 'starting');
        if (calls === 2) return never;
        return { type: 'CSIPlugin', name: 'a', supportedVersions: ['1.0.0'] };
      },
    },
  );
  t.after(() => plugin.close());
  assert.equal((await plugin.until(1)).pluginRegistered, true);
  assert.equal(calls, 3);
});

test('a plugin that cannot be told that it is registered is not registered', async (t) => {
  const { socket, seen } = await start(t);
  let calls = 0;
  const plugin = await serveRegistration(
    socket('a.sock'),
    { name: 'a' },
    {
      NotifyRegistrationStatus: () => {
        if (++calls === 1) throw grpcError('INTERNAL', 'broken');
      },
    },
  );
  t.after(() => plugin.close());
  await seen('deregister a');
  await seen('register a a.sock', 2);
});

test('a socket that is made anew is another plugin', async (t) => {
  const { socket, seen, events } = await start(t);
  const first = await serveRegistration(socket('a.sock'), { name: 'a', supportedVersions: ['1.0.0'] });
  await seen('register a a.sock');
  await first.close();
  const second = await serveRegistration(socket('a.sock'), { name: 'a', supportedVersions: ['1.1.0'] });
  t.after(() => second.close());
  assert.equal((await second.until(1)).pluginRegistered, true);
  assert.deepEqual(events, [
    'validate a 1.0.0',
    'register a a.sock',
    'deregister a',
    'validate a 1.1.0',
    'register a a.sock',
  ]);
});

test('a socket that nobody listens on is left alone, and a plugin that comes to it is registered', async (t) => {
  const { socket, seen } = await start(t);
  // Renamed, so that the server does not remove it.
  const dead = await serve(socket('.other.sock'), []);
  await rename(socket('.other.sock'), socket('other.sock'));
  await dead.close();
  const plugin = await serveRegistration(socket('a.sock'), { name: 'a' });
  t.after(() => plugin.close());
  await seen('register a a.sock');
});

test('waits double up to two minutes and two seconds', () => {
  assert.deepEqual(
    [1, 2, 3, 8, 9, 10, 100].map(waitMs),
    [500, 1000, 2000, 64_000, 122_000, 122_000, 122_000],
  );
});

test('a call is ended by its signal and by its deadline', async (t) => {
  const { folder } = await start(t);
  const served = await serve(join(folder, '.silent.sock'), [
    { service: registration, methods: { GetInfo: () => never } },
  ]);
  t.after(() => served.close());
  const channel = openChannel(join(folder, '.silent.sock'), registration);
  t.after(() => channel.close());
  await assert.rejects(channel.call('GetInfo', {}, { deadlineMs: 5 }), { code: 'DEADLINE_EXCEEDED' });
  const stop = new AbortController();
  const call = channel.call('GetInfo', {}, { deadlineMs: 60_000, signal: stop.signal });
  stop.abort();
  await assert.rejects(call, { code: 'ABORTED' });
  const over = channel.call('GetInfo', {}, { deadlineMs: 60_000, signal: stop.signal });
  await assert.rejects(over, { code: 'ABORTED' });
});

test('failures have the words of Go', () => {
  const failure = failureOf({ code: 13, details: 'boom' });
  assert.equal(failure.message, 'rpc error: code = Internal desc = boom');
  assert.equal(failure.details['grpc'], 13);
  assert.equal(failureOf({ code: 77, details: '' }).message, 'rpc error: code = Code(77) desc = ');
});

const published = publishedFile('k8s.io/kubelet@v0.37.2', 'pkg/apis/pluginregistration/v1/api.proto');
const absent = published === undefined ? "k8s.io/kubelet@v0.37.2 is not in Go's module cache" : false;

test('the messages are those of the published api.proto', { skip: absent }, () => {
  const { messages, services } = readProto(published!, 'pluginregistration');
  assert.deepEqual(registration.schema.messages, messages);
  assert.deepEqual({ Registration: registration.methods }, services);
});
