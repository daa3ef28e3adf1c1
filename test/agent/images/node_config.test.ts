/** The node's docker configuration: where it is looked for, and that a change is seen. */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { makeNodeConfig, nodeConfigCandidates } from '../../../agent/images/credentials/node_config.ts';
import type { Logger } from '../../../runtime/host/log.ts';

function scratch(t: TestContext) {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-node-config-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const warnings: string[] = [];
  const log = { warn: (fields: { path: string }, text: string) => warnings.push(`${fields.path}: ${text}`) };
  const put = (path: string, content: unknown, mode = 0o600) => {
    mkdirSync(join(folder, path, '..'), { recursive: true });
    writeFileSync(join(folder, path), typeof content === 'string' ? content : JSON.stringify(content));
    chmodSync(join(folder, path), mode);
  };
  // The last two of kubelet's places are in the root folder of the machine: not for a test to fill.
  const candidates = nodeConfigCandidates(
    join(folder, 'kubelet'),
    join(folder, 'cwd'),
    join(folder, 'home'),
  ).filter(({ path }) => path.startsWith(folder));
  const config = makeNodeConfig(candidates, log as unknown as Logger);
  const users = async () => (await config.read()).map(({ login }) => login.username);
  return { folder, put, users, warnings };
}

const auths = (username: string) => ({ 'reg.example': { username, password: 'hidden' } });

test('the places, in order', () => {
  assert.deepEqual(
    nodeConfigCandidates('/var/lib/kubelet', '/', '/root').map(({ path }) => path),
    [
      '/var/lib/kubelet/config.json',
      '/config.json',
      '/root/.docker/config.json',
      '/.docker/config.json',
      '/var/lib/kubelet/.dockercfg',
      '/.dockercfg',
      '/root/.dockercfg',
      '/.dockercfg',
    ],
  );
});

test('the first file that can be read counts, alone; changes are seen', async (t) => {
  const { folder, put, users, warnings } = scratch(t);
  assert.deepEqual(await users(), []);
  put('home/.dockercfg', auths('old'));
  assert.deepEqual(await users(), ['old']);
  put('home/.docker/config.json', { auths: auths('home') });
  assert.deepEqual(await users(), ['home']);
  put('kubelet/config.json', { auths: auths('kubelet') });
  assert.deepEqual(await users(), ['kubelet']);
  put('kubelet/config.json', { auths: { ...auths('changed'), other: { username: 'two' } } });
  assert.deepEqual(await users(), ['changed', 'two']);
  assert.deepEqual(warnings, []);
  put('kubelet/config.json', '{"auths": hidden');
  for (let at = 0; at < 3; at++) assert.deepEqual(await users(), ['home']);
  assert.deepEqual(warnings, [
    `${folder}/kubelet/config.json: credentials of the node: it is not valid JSON`,
  ]);
  rmSync(join(folder, 'kubelet'), { recursive: true });
  assert.deepEqual(await users(), ['home']);
});

test('a file that everybody can read is warned of, once, and used', async (t) => {
  const { put, users, warnings } = scratch(t);
  put('kubelet/config.json', { auths: auths('me') }, 0o644);
  for (let at = 0; at < 3; at++) assert.deepEqual(await users(), ['me']);
  assert.equal(warnings.length, 1);
  assert.match(warnings[0]!, /chmod 600/);
});

test('what is no file is told once and left', async (t) => {
  const { folder, put, users, warnings } = scratch(t);
  mkdirSync(join(folder, 'kubelet/config.json'), { recursive: true });
  put('home/.docker/config.json', { auths: auths('home') });
  for (let at = 0; at < 3; at++) assert.deepEqual(await users(), ['home']);
  assert.equal(warnings.length, 1);
});
