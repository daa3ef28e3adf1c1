/** The configuration folders: which file counts, and that changes are seen without a restart. */
import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeNetworkFolders } from '../../cni/folder.ts';
import { isError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { attachment, setUp } from './scripted.ts';

const network = (name: string) => ({ cniVersion: '1.0.0', name, plugins: [{ type: 'one' }] });

/** Resolves when `wanted` holds, looking again after each change that is told. */
async function changesUntil(
  folders: { onChange(listener: () => void): () => void },
  wanted: () => Promise<boolean>,
): Promise<void> {
  let wake = () => {};
  const stop = folders.onChange(() => wake());
  for (;;) {
    const woken = new Promise<void>((resolve) => {
      wake = resolve;
    });
    if (await wanted()) return stop() as unknown as undefined;
    await woken;
  }
}

test('the lexically first valid file of the first folder that has one', async (t) => {
  const setup = setUp(t);
  const second = join(setup.root, 'second');
  mkdirSync(second);
  const folders = makeNetworkFolders({
    confDirs: [setup.confDir, second],
    log: makeLogger('silent'),
  });
  t.after(folders.close);
  writeFileSync(join(second, '01.conflist'), JSON.stringify(network('second')));
  assert.equal((await folders.current()).network?.name, 'second');
  setup.config('20.conflist', network('twenty'));
  setup.config('30.conf', { cniVersion: '1.0.0', name: 'thirty', type: 'one' });
  setup.config('00.txt', network('ignored'));
  setup.config('05.conflist', '');
  setup.config('06.json', '{"name":');
  mkdirSync(join(setup.confDir, '07.conf'));
  const again = makeNetworkFolders({ confDirs: [setup.confDir, second], log: makeLogger('silent') });
  t.after(again.close);
  const found = await again.current();
  assert.equal(found.network?.name, 'twenty');
  assert.equal(found.file, join(setup.confDir, '20.conflist'));
  assert.equal(found.skipped.length, 3);
  assert.match(found.skipped[0]!, /05\.conflist: is empty/);
  assert.match(found.skipped[1]!, /06\.json: is not JSON/);
  assert.match(found.skipped[2]!, /07\.conf: is not a file/);
});

test('a changed, a new and a removed file are seen', async (t) => {
  const setup = setUp(t);
  const folders = makeNetworkFolders({ confDirs: [setup.confDir], log: makeLogger('silent') });
  t.after(folders.close);
  const name = async () => (await folders.current()).network?.name;
  assert.equal(await name(), undefined);
  setup.config('20.conflist', network('a'));
  await changesUntil(folders, async () => (await name()) === 'a');
  setup.config('.hidden', JSON.stringify(network('b')));
  renameSync(join(setup.confDir, '.hidden'), join(setup.confDir, '10.conflist'));
  await changesUntil(folders, async () => (await name()) === 'b');
  setup.config('10.conflist', network('c'));
  await changesUntil(folders, async () => (await name()) === 'c');
  rmSync(join(setup.confDir, '10.conflist'));
  await changesUntil(folders, async () => (await name()) === 'a');
  rmSync(setup.confDir, { recursive: true });
  await changesUntil(folders, async () => (await name()) === undefined);
});

test('a folder that comes later, with the folders above it, is seen', async (t) => {
  const setup = setUp(t);
  const deep = join(setup.root, 'etc', 'cni', 'net.d');
  const folders = makeNetworkFolders({ confDirs: [deep], log: makeLogger('silent') });
  t.after(folders.close);
  const seen = changesUntil(folders, async () => (await folders.current()).network?.name === 'late');
  mkdirSync(deep, { recursive: true });
  writeFileSync(join(deep, '10.conflist'), JSON.stringify(network('late')));
  await seen;
});

test('a folder behind a symbolic link is watched', async (t) => {
  const setup = setUp(t);
  const link = join(setup.root, 'link');
  symlinkSync(setup.confDir, link);
  const folders = makeNetworkFolders({ confDirs: [link], log: makeLogger('silent') });
  t.after(folders.close);
  setup.config('10.conflist', network('a'));
  assert.equal((await folders.current()).network?.name, 'a');
  setup.config('10.conflist', network('b'));
  await changesUntil(folders, async () => (await folders.current()).network?.name === 'b');
});

test("plugins of the network's own folder are added, and seen when they come", async (t) => {
  const setup = setUp(t);
  setup.config('10.conflist', network('pods'));
  const folders = makeNetworkFolders({ confDirs: [setup.confDir], log: makeLogger('silent') });
  t.after(folders.close);
  const types = async () => (await folders.current()).network?.plugins.map(({ type }) => type).join();
  assert.equal(await types(), 'one');
  mkdirSync(join(setup.confDir, 'pods'));
  writeFileSync(join(setup.confDir, 'pods', '20.conf'), '{"type":"two"}');
  await changesUntil(folders, async () => (await types()) === 'one,two');
  writeFileSync(join(setup.confDir, 'pods', '10.conf'), '{"type":"first"}');
  await changesUntil(folders, async () => (await types()) === 'one,first,two');
  mkdirSync(join(setup.confDir, 'pods', '30.conf'));
  writeFileSync(join(setup.confDir, 'pods', '40.conf'), '{"type":"last"}');
  await changesUntil(folders, async () => (await types()) === 'one,first,two,last');
});

test('readiness says what to install and where, flips both ways, and ADD follows', async (t) => {
  const setup = setUp(t);
  setup.plugin('one', `[ $CNI_COMMAND = ADD ] && echo '{"ips":[{"address":"10.0.0.2/8"}]}'; exit 0`);
  const cni = setup.cni();
  const status = await cni.status();
  assert.equal(status.ready, false);
  assert.match(status.message, /containernetworking-plugins/);
  assert.ok(status.message.includes(setup.confDir));
  await assert.rejects(cni.add(attachment('c1', '/proc/self/ns/net')), (error) =>
    isError(error, 'CNI_NOT_CONFIGURED'),
  );
  setup.config('05.conflist', '');
  setup.config('10.conflist', network('pods'));
  await changesUntil(cni, async () => (await cni.status()).ready);
  assert.match((await cni.status()).message, /passed over: .*05\.conflist: is empty/);
  assert.deepEqual(await cni.add(attachment('c1', '/proc/self/ns/net')), { ips: ['10.0.0.2'] });
  rmSync(join(setup.confDir, '10.conflist'));
  await changesUntil(cni, async () => !(await cni.status()).ready);
});

test('closing leaves no watch behind', async (t) => {
  const setup = setUp(t);
  const watches = () =>
    readdirSync('/proc/self/fd').filter((fd) => {
      const path = `/proc/self/fd/${fd}`;
      return existsSync(path) && readlinkSync(path).includes('inotify');
    }).length;
  const active = () => process.getActiveResourcesInfo().filter((name) => name === 'FSEventWrap').length;
  const before = active();
  for (let round = 0; round < 20; round++) {
    const folders = makeNetworkFolders({
      confDirs: [setup.confDir, '/nonexistent/keelson'],
      log: makeLogger('silent'),
    });
    folders.onChange(() => {});
    await folders.current();
    folders.close();
  }
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(active(), before);
  assert.ok(watches() <= 1);
});
