/** Links to logs: those of no use go, and nothing of others. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { removeDeadLinks, removeLinks } from '../../../agent/logs/links.ts';

function makeFolders(t: TestContext) {
  const root = mkdtempSync(join(tmpdir(), 'keelson-test-links-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const [links, pods] = [join(root, 'containers'), join(root, 'pods')];
  mkdirSync(links);
  const log = (pod: string, name: string, there: boolean) => {
    const folder = join(pods, pod, 'app');
    mkdirSync(folder, { recursive: true });
    if (there) writeFileSync(join(folder, name), '');
    return join(folder, name);
  };
  symlinkSync(log('ns_a_uid-a', '0.log', true), join(links, 'a_ns_app-1111.log'));
  symlinkSync(log('ns_a_uid-a', '1.log', false), join(links, 'a_ns_app-2222.log'));
  symlinkSync(log('ns_b_uid-b', '0.log', false), join(links, 'b_ns_app-3333.log'));
  symlinkSync('/nowhere/else.log', join(links, 'other-4444.log'));
  symlinkSync(join(pods, 'gone'), join(links, 'folder-5555.log'));
  writeFileSync(join(links, 'file-6666.log'), '');
  const left = () => readdirSync(links).map((name) => /\d{4}/.exec(name)![0]);
  return { links, pods, left };
}

test('links to logs that are gone go, but for containers that are there', async (t) => {
  const { links, pods, left } = makeFolders(t);
  await removeDeadLinks(links, pods, new Set(['3333']));
  assert.deepEqual(left().sort(), ['1111', '3333', '4444', '5555', '6666']);
  await removeDeadLinks(links, pods, new Set());
  assert.deepEqual(left().sort(), ['1111', '4444', '5555', '6666']);
});

test('the links into one pod', async (t) => {
  const { links, pods, left } = makeFolders(t);
  await removeLinks(links, pods, ({ uid }) => uid === 'uid-a');
  assert.deepEqual(left().sort(), ['3333', '4444', '5555', '6666']);
  await removeLinks(join(links, 'none'), pods, () => true);
});
