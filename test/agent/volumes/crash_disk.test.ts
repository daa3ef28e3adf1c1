/** A local disk, which is mounted for the node and then for pods, with the agent gone at each of its steps. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile, truncate, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { makeLogger } from '../../../runtime/host/log.ts';
import { crashAt, install } from './crash_at.ts';

install();
const { asRoot, fakeClient, fakeObjects, handClock, podOf, scratch } = await import('./cluster.ts');
const { makeVolumes } = await import('../../../agent/volumes/manager.ts');
const { mountsBelow } = await import('../../../agent/volumes/mounts.ts');
const { exec } = await import('../../../runtime/host/exec.ts');

const skip = asRoot || (existsSync('/dev/loop-control') ? false : 'the kernel has no loop devices');

async function world(t: TestContext) {
  const folder = await scratch(t);
  const kubeletDir = join(folder, 'kubelet');
  const image = join(folder, 'disk.img');
  await writeFile(image, '');
  await truncate(image, 4 << 20);
  const { stdout } = await exec('losetup', ['-f', '--show', image], { deadlineMs: 20_000 });
  const device = stdout.toString('utf8').trim();
  t.after(async () => {
    for (const path of (await mountsBelow(folder)).reverse())
      await exec('umount', [path], { deadlineMs: 20_000, okCodes: 'any' });
    await exec('losetup', ['-d', device], { deadlineMs: 20_000 });
  });
  const clock = handClock();
  const client = {
    ...fakeClient(clock),
    async get<T>(path: string): Promise<T> {
      const claim = { spec: { volumeName: 'pv' }, status: { phase: 'Bound' }, metadata: { uid: 'c' } };
      const spec = { claimRef: { uid: 'c' }, local: { path: device, fsType: 'ext2' } };
      return (path.includes('claims') ? claim : { metadata: { name: 'pv' }, spec }) as T;
    },
  };
  const options = { kubeletDir, client, objects: fakeObjects(), nodeName: 'node', clock, random: () => 0 };
  return { kubeletDir, start: () => makeVolumes({ ...options, log: makeLogger('silent') }) };
}

type World = Awaited<ReturnType<typeof world>>;

async function checkGone({ kubeletDir }: World): Promise<void> {
  assert.deepEqual(await mountsBelow(kubeletDir), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'pods')), []);
  const shared = join(kubeletDir, 'plugins/kubernetes.io/local-volume/mounts');
  assert.deepEqual(await readdir(shared).catch(() => []), []);
}

const pod = podOf({
  volumes: [{ name: 'v', persistentVolumeClaim: { claimName: 'disk' } }],
  securityContext: { fsGroup: 3000, fsGroupChangePolicy: 'OnRootMismatch' },
});
const uid = pod.metadata!.uid!;
/** More than it needs. */
const mostSteps = 200;

test('a disk: gone while it is made, the next agent makes it, or takes it away', { skip }, async (t) => {
  const own = await world(t);
  let crashed = true;
  let last = 0;
  while (crashed) {
    assert.ok(++last < mostSteps, 'it never ends');
    for (const goesOn of [true, false]) {
      crashed = await crashAt(last, () => own.start().setUp(pod));
      const volumes = own.start();
      if (goesOn) {
        const { hostPath } = (await volumes.setUp(pod)).get('v')!;
        await writeFile(join(hostPath, 'file'), 'kept');
        assert.deepEqual(
          (await mountsBelow(own.kubeletDir)).length,
          2,
          'mounted once for the node and the pod',
        );
      }
      for (const one of await volumes.podsOnDisk()) await volumes.tearDown(one);
      await checkGone(own);
    }
  }
  assert.ok(last > 10, `only ${last} steps were seen`);
  t.diagnostic(`${last} steps`);
});

test('a disk: gone while it is taken away, the next agent finds the rest', { skip }, async (t) => {
  const own = await world(t);
  let crashed = true;
  let last = 0;
  while (crashed) {
    assert.ok(++last < mostSteps, 'it never ends');
    const before = own.start();
    const { hostPath } = (await before.setUp(pod)).get('v')!;
    if (last === 1) await writeFile(join(hostPath, 'file'), 'kept');
    assert.equal(await readFile(join(hostPath, 'file'), 'utf8'), 'kept');
    crashed = await crashAt(last, () => before.tearDown(uid));
    const volumes = own.start();
    for (const one of await volumes.podsOnDisk()) await volumes.tearDown(one);
    await checkGone(own);
  }
  assert.ok(last > 10, `only ${last} steps were seen`);
  t.diagnostic(`${last} steps`);
});
