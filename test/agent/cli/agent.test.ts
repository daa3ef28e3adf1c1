/** The command line against a real agent with a real registry, and against its store when the agent is gone. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, readdirSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { lockFile } from '../../../runtime/host/database.ts';
import { busyboxImage, pushImage } from '../../peers/image.ts';
import { startNode, type TestNode } from '../../peers/node.ts';
import { waitFor } from '../../peers/process.ts';
import { hasRegistry, startRegistry } from '../../peers/registry.ts';

const skip =
  process.getuid?.() !== 0 ? 'needs root' : hasRegistry() ? false : 'needs the package docker-registry';

const logged = (node: TestNode, what: string, test: (log: string) => boolean) =>
  waitFor(what, async () => test(await node.log(100_000)) || undefined, {
    deadlineMs: 60_000,
    daemon: node.agent,
  });
const isUp = (node: TestNode) =>
  logged(
    node,
    'the agent to be up',
    (log) => log.lastIndexOf('keelson is up') > log.lastIndexOf('waiting for its end'),
  );

test('an agent serves commands, and its store is there without it', { skip }, async (t) => {
  const registry = await startRegistry(t);
  const image = busyboxImage({});
  const name = `${registry.host}/library/busybox:1`;
  await pushImage(registry.host, 'library/busybox:1', image);
  const node = await startNode({ network: false });
  t.after(() => node.cleanup());
  const { runDir, configFile } = node.paths;
  const run = async (verb: string, ...args: string[]) => {
    const child = spawn('packaging/keelson', [verb, '--config', configFile, ...args], {
      cwd: join(import.meta.dirname, '../../..'),
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => (stdout += text));
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    const [code] = await once(child, 'close');
    return { code, stdout, stderr };
  };
  const ids = async () =>
    JSON.parse((await run('images', '--json')).stdout).images.map(({ id }: { id: string }) => id);

  await isUp(node);
  const pulled = await run('pull', name);
  assert.equal(pulled.code, 0, pulled.stderr);
  assert.equal(pulled.stdout, `${image.id}\n`);
  for (const { digest } of image.layers) {
    for (const phase of ['waiting', 'done']) {
      assert.match(pulled.stderr, new RegExp(`^${digest.slice(7, 19)} ${phase} `, 'm'));
    }
  }
  assert.equal(statSync(join(runDir, 'control.sock')).mode & 0o777, 0o600);
  assert.deepEqual(await ids(), [image.id]);
  const missing = await run('pull', `${registry.host}/library/nothing:1`);
  assert.equal(missing.code, 1);
  assert.match(missing.stderr, /^keelson: .*nothing.*not found/m);

  await node.kill9();
  assert.ok(readdirSync(runDir).includes('control.sock'), 'a killed agent leaves its socket');
  const alone = await run('images', '--quiet');
  assert.equal(alone.stdout, `${image.id.slice(7, 19)}\n`);
  assert.match(alone.stderr, /^no agent runs/);
  const removed = await run('rm', image.id.slice(7, 19));
  assert.equal(removed.code, 0, removed.stderr);
  const again = await run('pull', '--quiet', name);
  assert.equal(again.stdout, `${image.id}\n`, again.stderr);

  const lock = lockFile(join(node.paths.stateDir, 'state.db.lock'))!;
  await node.start();
  await logged(node, 'the agent to wait', (log) => log.includes('waiting for its end'));
  closeSync(lock);
  await isUp(node);
  assert.deepEqual(await ids(), [image.id]);
  await node.stop();
  assert.ok(!readdirSync(runDir).includes('control.sock'));
});
