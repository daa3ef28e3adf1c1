/** Every kind of volume, with the agent gone at each of its calls of the file system, while setting up and tearing down. */
import assert from 'node:assert/strict';
import { mkdir, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Pod, Volume } from '../../../agent/apiserver/types.ts';
import type { ReadyVolume, VolumeManager } from '../../../agent/volumes/types.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { crashAt, install } from './crash_at.ts';

install();
const { apiAccess, asRoot, fakeClient, fakeObjects, handClock, podOf, scratch } = await import(
  './cluster.ts'
);
const { makeVolumes } = await import('../../../agent/volumes/manager.ts');
const { mountsBelow } = await import('../../../agent/volumes/mounts.ts');
const { resolveSubPath, subPathTarget } = await import('../../../agent/volumes/subpath.ts');

interface Case {
  readonly volume: Volume;
  /** What must be true of a volume that is ready. */
  check(ready: ReadyVolume): Promise<void>;
  /** A container has a part of it. */
  readonly subPath?: string;
}

const file = async (ready: ReadyVolume, name: string, text: RegExp) =>
  assert.match(await readFile(join(ready.hostPath, name), 'utf8'), text);

const owned = async (ready: ReadyVolume, mode: number) => {
  const facts = await stat(ready.hostPath);
  assert.deepEqual([(facts.mode & 0o7777).toString(8), facts.gid], [mode.toString(8), 3000]);
};

const kept = 'what people keep';

const cases: Readonly<Record<string, Case>> = {
  configMap: {
    volume: { name: 'v', configMap: { name: 'kube-root-ca.crt' } },
    check: (ready) => file(ready, 'ca.crt', /^CERTIFICATE$/),
    subPath: 'ca.crt',
  },
  secret: {
    volume: { name: 'v', secret: { secretName: 's', items: [{ key: 'k', path: 'deep/er/k' }] } },
    check: (ready) => file(ready, 'deep/er/k', /^hidden$/),
  },
  projected: {
    volume: { ...apiAccess, name: 'v' },
    async check(ready) {
      await file(ready, 'token', /\./);
      await file(ready, 'namespace', /^ns$/);
    },
  },
  emptyDir: {
    volume: { name: 'v', emptyDir: {} },
    check: (ready) => owned(ready, 0o2777),
    subPath: 'not/there/yet',
  },
  memory: {
    volume: { name: 'v', emptyDir: { medium: 'Memory', sizeLimit: '1Mi' } },
    check: (ready) => owned(ready, 0o3777),
    subPath: 'not/there/yet',
  },
  local: {
    volume: { name: 'v', persistentVolumeClaim: { claimName: 'local' } },
    async check(ready) {
      await file(ready, 'inner/file', new RegExp(kept));
      assert.equal((await stat(join(ready.hostPath, 'inner/file'))).gid, 3000);
    },
    subPath: 'inner',
  },
  readOnly: {
    volume: { name: 'v', persistentVolumeClaim: { claimName: 'local', readOnly: true } },
    async check(ready) {
      await file(ready, 'inner/file', new RegExp(kept));
      await assert.rejects(writeFile(join(ready.hostPath, 'new'), ''), { code: 'EROFS' });
    },
  },
};

async function bench(t: TestContext) {
  const folder = await scratch(t);
  const [kubeletDir, outside] = [join(folder, 'kubelet'), join(folder, 'outside')];
  const objects = fakeObjects();
  objects.configmaps.set('ns/kube-root-ca.crt', { data: { 'ca.crt': 'CERTIFICATE' } });
  objects.secrets.set('ns/s', { data: { k: Buffer.from('hidden').toString('base64') } });
  const clock = handClock();
  const client = {
    ...fakeClient(clock),
    async get<T>(path: string): Promise<T> {
      const claim = { spec: { volumeName: 'pv' }, status: { phase: 'Bound' }, metadata: { uid: 'c' } };
      const spec = { claimRef: { uid: 'c' }, local: { path: outside } };
      return (path.includes('claims') ? claim : { metadata: { name: 'pv' }, spec }) as T;
    },
  };
  return {
    kubeletDir,
    outside,
    async fresh() {
      await rm(outside, { recursive: true, force: true });
      await mkdir(join(outside, 'inner'), { recursive: true });
      await writeFile(join(outside, 'inner/file'), kept);
    },
    /** As the next process has it. */
    start: () =>
      makeVolumes({
        kubeletDir,
        client,
        objects,
        nodeName: 'node',
        log: makeLogger('silent'),
        clock,
        random: () => 0,
      }),
  };
}

type Bench = Awaited<ReturnType<typeof bench>>;

/** As a worker does: the volume, and the part of it that a container gets. */
async function setUp(
  volumes: VolumeManager,
  pod: Pod,
  { kubeletDir }: Bench,
  one: Case,
): Promise<ReadyVolume> {
  const ready = (await volumes.setUp(pod)).get('v')!;
  if (one.subPath !== undefined)
    await resolveSubPath(ready.hostPath, one.subPath, {
      target: subPathTarget(kubeletDir, pod.metadata!.uid!, 'v', 'main', 0),
    });
  return ready;
}

async function checkGone({ kubeletDir, outside }: Bench, volumes: VolumeManager): Promise<void> {
  assert.deepEqual(await mountsBelow(kubeletDir), []);
  assert.deepEqual(await volumes.podsOnDisk(), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'pods')).catch(() => []), []);
  assert.equal(
    await readFile(join(outside, 'inner/file'), 'utf8'),
    kept,
    'nothing was deleted through a mount',
  );
}

/** More than any kind needs. */
const mostCalls = 400;

// Side by side: most of the time is waiting for the kernel to take mounts away.
test('the agent gone at any call', { skip: asRoot, concurrency: 14 }, async (t) => {
  await Promise.all(Object.entries(cases).flatMap(([name, one]) => points(t, name, one)));
});

test('a pod that has a volume twice may write to the one', { skip: asRoot }, async (t) => {
  const world = await bench(t);
  const [writable, readOnly] = [cases['local']!.volume, { ...cases['readOnly']!.volume, name: 'readOnly' }];
  for (const list of [
    [writable, readOnly],
    [readOnly, writable],
  ]) {
    await world.fresh();
    const volumes = world.start();
    const made = await volumes.setUp(podOf({ volumes: list, securityContext: { fsGroup: 3000 } }));
    const folder = made.get('v')!.hostPath;
    await writeFile(join(folder, 'new'), '');
    assert.equal((await stat(join(folder, 'inner/file'))).gid, 3000);
    assert.deepEqual([made.get('v')!.readOnly, made.get('readOnly')!.readOnly], [false, true]);
    await volumes.tearDown('uid-1');
    await checkGone(world, volumes);
  }
});

function points(t: TestContext, name: string, one: Case): Promise<void>[] {
  const pod = podOf({ volumes: [one.volume], securityContext: { fsGroup: 3000 } }, 'crashing');
  const uid = pod.metadata!.uid!;

  const made = t.test(
    `${name}: gone while it is made, the next agent makes it, or takes it away`,
    async (t) => {
      const world = await bench(t);
      let crashed = true;
      let last = 0;
      while (crashed) {
        assert.ok(++last < mostCalls, 'it never ends');
        for (const goesOn of [true, false]) {
          await world.fresh();
          crashed = await crashAt(last, () => setUp(world.start(), pod, world, one));
          const volumes = world.start();
          if (goesOn) await one.check(await setUp(volumes, pod, world, one));
          await volumes.tearDown(uid);
          await checkGone(world, volumes);
        }
      }
      assert.ok(last > 5, `only ${last} calls were seen`);
      t.diagnostic(`${last} calls`);
    },
  );

  const taken = t.test(`${name}: gone while it is taken away, the next agent finds the rest`, async (t) => {
    const world = await bench(t);
    let crashed = true;
    let last = 0;
    while (crashed) {
      assert.ok(++last < mostCalls, 'it never ends');
      await world.fresh();
      const before = world.start();
      await setUp(before, pod, world, one);
      crashed = await crashAt(last, () => before.tearDown(uid));
      const volumes = world.start();
      const left = await readdir(join(world.kubeletDir, 'pods'));
      assert.deepEqual(await volumes.podsOnDisk(), left, 'what is left is known to be left');
      for (const podUid of left) await volumes.tearDown(podUid);
      await checkGone(world, volumes);
    }
    assert.ok(last > 5, `only ${last} calls were seen`);
    t.diagnostic(`${last} calls`);
  });
  return [made, taken];
}
