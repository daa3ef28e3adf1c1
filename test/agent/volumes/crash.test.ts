import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { mountsBelow } from '../../../agent/volumes/mounts.ts';
import { asRoot, bench, churned } from './cluster.ts';

test('killed at any moment, the volumes are finished or removed by the next process', {
  skip: asRoot,
}, async (t) => {
  const { kubeletDir, objects, restart, at } = await bench(t);
  const uid = churned.metadata!.uid!;
  objects.configmaps.set('ns/kube-root-ca.crt', { data: { 'ca.crt': 'LAST' } });
  for (let round = 0; round < 8; round++) {
    const child = spawn(process.execPath, [fileURLToPath(new URL('churn.ts', import.meta.url)), kubeletDir], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    t.after(() => child.kill('SIGKILL'));
    await once(child.stdout, 'data');
    await new Promise((resolve) => setTimeout(resolve, 3 * round));
    child.kill('SIGKILL');
    await once(child, 'close');

    const volumes = restart();
    if (round % 2 === 0) {
      await volumes.setUp(churned);
      const folder = at(uid, 'projected', 'kube-api-access');
      assert.equal(await readFile(join(folder, 'ca.crt'), 'utf8'), 'LAST');
      assert.equal((await readFile(join(folder, 'token'), 'utf8')).split('.').length, 3);
      assert.equal((await stat(join(folder, 'token'))).gid, 3000);
      assert.equal(await readFile(join(at(uid, 'configmap', 'root'), 'ca.crt'), 'utf8'), 'LAST');
      for (const [name, mode] of [
        ['disk', 0o2777],
        ['memory', 0o3777],
      ] as const) {
        const facts = await stat(at(uid, 'empty-dir', name));
        assert.deepEqual([facts.mode & 0o7777, facts.gid], [mode, 3000], name);
      }
      const hidden = (await readdir(folder)).filter((name) => name.startsWith('..'));
      assert.equal(hidden.length, 2, String(hidden));
    }
    await volumes.tearDown(uid);
    assert.deepEqual(await mountsBelow(kubeletDir), []);
    assert.deepEqual(await readdir(join(kubeletDir, 'pods')), []);
  }
});
