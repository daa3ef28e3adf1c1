import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { type Announcer, type CsiDrivers, makeCsiDrivers } from '../../../../agent/volumes/csi/drivers.ts';
import { startCsiDriver } from '../../../peers/csi-driver.ts';
import { grpcError } from '../../../peers/plugin.ts';

const signal = AbortSignal.timeout(60_000);

async function start(t: TestContext, announcer: Partial<Announcer> = {}) {
  const base = await mkdtemp(join(tmpdir(), 'keelson-test-drivers-'));
  const socket = join(base, 'csi.sock');
  const driver = await startCsiDriver({ socket, stateDir: base, topology: { zone: 'z' }, maxVolumes: 16 });
  const told: unknown[] = [];
  const drivers = makeCsiDrivers({
    install: async (name, info) => void told.push([name, info]),
    uninstall: async (name) => void told.push([name]),
    ...announcer,
  });
  t.after(async () => {
    drivers.close();
    await driver.close();
    await rm(base, { recursive: true, force: true });
  });
  return { socket, driver, drivers, told };
}

const plugin = (socket: string, changes: object = {}) => ({
  name: 'd',
  endpoint: socket,
  versions: ['1.0.0'],
  socket: '/reg.sock',
  ...changes,
});
const isThere = (drivers: CsiDrivers) => {
  try {
    return drivers.get('d').name === 'd';
  } catch {
    return false;
  }
};

test('a driver is announced with what it says of the node, and forgotten', async (t) => {
  const { socket, drivers, told } = await start(t);
  await drivers.handler.register(plugin(socket), signal);
  assert.deepEqual(told, [['d', { nodeId: 'node-id', maxVolumes: 16n, topology: { zone: 'z' } }]]);
  assert.equal((await drivers.get('d').can())('STAGE_UNSTAGE_VOLUME'), true);
  await drivers.handler.deregister(plugin(socket));
  assert.deepEqual(told.at(-1), ['d']);
  assert.equal(isThere(drivers), false);
});

test('names, versions and seconds of the same version are refused', async (t) => {
  const { socket, drivers } = await start(t);
  const { validate, register } = drivers.handler;
  for (const name of ['', '../x', 'a/b', 'x'.repeat(64), '-a'])
    await assert.rejects(async () => validate(plugin(socket, { name })), /not one of a CSI driver/);
  await assert.rejects(async () => validate(plugin(socket, { versions: [] })), /empty list/);
  await assert.rejects(async () => validate(plugin(socket, { versions: ['0.3.0'] })), /None of the versions/);
  await register(plugin(socket), signal);
  await assert.rejects(
    async () => validate(plugin(socket, { socket: '/two' })),
    /already registered with a higher supported version: "1.0"/,
  );
  const newer = plugin(socket, { socket: '/two', versions: ['1.1.0'] });
  await register(newer, signal);
  await drivers.handler.deregister(plugin(socket));
  assert.equal(isThere(drivers), true, 'the newer one stays when the older one goes');
});

test('a driver that does not say which node this is, or that nobody can be told of, is not used', async (t) => {
  const { socket, driver, drivers } = await start(t, {
    install: async () => {
      throw new Error('no apiserver');
    },
  });
  await assert.rejects(drivers.handler.register(plugin(socket), signal), /no apiserver/);
  driver.behave.set('NodeGetInfo', () => ({ nodeId: '' }));
  await assert.rejects(drivers.handler.register(plugin(socket), signal), /driverNodeID must not be empty/);
  assert.equal(isThere(drivers), false);
});

test('a driver without NodeGetCapabilities can nothing; one that fails is asked again', async (t) => {
  const { socket, driver, drivers } = await start(t);
  await drivers.handler.register(plugin(socket), signal);
  driver.behave.set('NodeGetCapabilities', () => {
    throw grpcError('UNAVAILABLE', 'starting');
  });
  await assert.rejects(drivers.get('d').can(), { code: 'UNAVAILABLE' });
  driver.behave.set('NodeGetCapabilities', () => {
    throw grpcError('UNIMPLEMENTED', 'what');
  });
  assert.equal((await drivers.get('d').can())('STAGE_UNSTAGE_VOLUME'), false);
});
