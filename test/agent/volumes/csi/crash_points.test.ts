/** Volumes of CSI drivers, with the agent gone at each of its steps, while setting up and tearing down. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { dirname } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Volume } from '../../../../agent/apiserver/types.ts';
import { attachmentName } from '../../../../agent/volumes/csi/paths.ts';
import type { FakeCsiDriver, FakeCsiOptions } from '../../../peers/csi-driver.ts';
import { crashAt, install, step } from '../crash_at.ts';
import type { CsiStage } from './stage.ts';

install();
const { addVolume, claimed, csiStage, driverName, inline, podWith } = await import('./stage.ts');

interface Case {
  readonly volume: Volume;
  readonly capabilities?: NonNullable<FakeCsiOptions['capabilities']>;
  readonly device?: true;
  /** Another pod has the volume all the time. */
  readonly shared?: true;
  readonly grown?: true;
  readonly attached?: true;
}

const cases: Readonly<Record<string, Case>> = {
  staged: { volume: claimed('data') },
  attached: { volume: claimed('data'), attached: true },
  shared: { volume: claimed('data'), shared: true },
  'not staged': { volume: claimed('data'), capabilities: [] },
  inline: { volume: inline('data') },
  grown: { volume: claimed('data'), capabilities: ['STAGE_UNSTAGE_VOLUME', 'EXPAND_VOLUME'], grown: true },
  device: { volume: claimed('data'), device: true },
};

/** More than any of them needs. */
const mostSteps = 300;

/** Holds what the driver was asked against the lifecycle of a volume (CSI spec, "Volume Lifecycle"). */
function checkOrder({ calls }: FakeCsiDriver): void {
  let staged = false;
  const published = new Set<string>();
  for (const { method, request } of calls) {
    const { stagingTargetPath, targetPath } = request;
    if (method === 'NodeStageVolume') staged = true;
    if (method === 'NodePublishVolume') {
      assert.ok(staged || stagingTargetPath === '', 'published before it was staged');
      published.add(targetPath);
    }
    if (method === 'NodeExpandVolume')
      assert.ok(published.has(request.volumePath), 'grown before it was published');
    if (method === 'NodeUnpublishVolume') published.delete(targetPath);
    if (method === 'NodeUnstageVolume') {
      assert.deepEqual([...published], [], 'unstaged while it is published');
      staged = false;
    }
  }
  assert.deepEqual([staged, [...published]], [false, []], 'the driver still has something');
}

/** Folders that stay, as with kubelet. */
const lasting = [
  'plugins',
  'plugins/kubernetes.io',
  'plugins/kubernetes.io/csi',
  `plugins/kubernetes.io/csi/${driverName}`,
  ...['', '/staging', '/publish'].map((name) => `plugins/kubernetes.io/csi/volumeDevices${name}`),
  'pods',
];

/** Files behind loop devices. */
async function loops(): Promise<string> {
  const names = (await readdir('/sys/block')).filter((name) => name.startsWith('loop'));
  const files = names.map((name) => readFile(`/sys/block/${name}/loop/backing_file`, 'utf8').catch(() => ''));
  return (await Promise.all(files)).join('');
}

/** A device that somebody is just looking at goes a little later. */
async function noLoops({ kubeletDir }: CsiStage): Promise<void> {
  const end = Date.now() + 20_000;
  while ((await loops()).includes(dirname(kubeletDir))) {
    assert.ok(Date.now() < end, 'a loop device is left');
    await new Promise((resolve) => setTimeout(resolve, 5));
  }
}

async function world(t: TestContext, one: Case): Promise<CsiStage> {
  const stage = await csiStage(t, {
    around: step,
    spec: { attachRequired: one.attached === true },
    ...(one.capabilities === undefined ? {} : { capabilities: one.capabilities }),
  });
  addVolume(stage, 'data', {
    ...(one.device ? { volumeMode: 'Block' } : {}),
    ...(one.grown ? { capacity: { storage: '2Gi' } } : {}),
  });
  stage.objects.set(
    `/apis/storage.k8s.io/v1/volumeattachments/${attachmentName('handle-data', driverName, 'n')}`,
    { metadata: {}, status: { attached: true } },
  );
  return stage;
}

const podOf = (uid: string, one: Case) => podWith(uid, [one.volume], {}, one.device ? ['data'] : []);

async function checkGone(stage: CsiStage): Promise<void> {
  assert.deepEqual(await stage.mounts(), []);
  const left = await readdir(stage.kubeletDir, { recursive: true });
  assert.deepEqual(
    left.filter((path) => !lasting.includes(path)),
    [],
  );
  await noLoops(stage);
  checkOrder(stage.driver);
  // A process that starts tells it, whatever the one before could not tell any more.
  await stage.next();
  assert.deepEqual(stage.patches.filter(({ path }) => path.includes('/nodes/')).at(-1)?.body, {
    status: { volumesInUse: null },
  });
}

async function tearDownAll(stage: CsiStage): Promise<void> {
  for (const uid of await stage.volumes.podsOnDisk()) await stage.volumes.tearDown(uid);
}

/** Nothing is left, nothing was asked. */
async function begin(stage: CsiStage, one: Case): Promise<void> {
  stage.driver.calls.length = 0;
  stage.patches.length = 0;
  await stage.next();
  if (one.shared) await stage.volumes.setUp(podOf('other', one));
}

async function crashInSetUp(t: TestContext, one: Case): Promise<void> {
  const stage = await world(t, one);
  let crashed = true;
  let last = 0;
  while (crashed) {
    assert.ok(++last < mostSteps, 'it never ends');
    for (const goesOn of [true, false]) {
      await begin(stage, one);
      crashed = await crashAt(last, () => stage.volumes.setUp(podOf('a', one)));
      await stage.next();
      if (goesOn) {
        const { hostPath } = (await stage.volumes.setUp(podOf('a', one))).get('data')!;
        assert.ok(
          (await stage.mounts()).some((path) => hostPath.endsWith(path)),
          'the pod has no volume',
        );
        assert.equal(stage.driver.names().includes('NodeExpandVolume'), one.grown === true);
      }
      await tearDownAll(stage);
      await checkGone(stage);
    }
  }
  assert.ok(last > 10, `only ${last} steps were seen`);
  t.diagnostic(`${last} steps`);
}

async function crashInTearDown(t: TestContext, one: Case): Promise<void> {
  const stage = await world(t, one);
  let crashed = true;
  let last = 0;
  while (crashed) {
    assert.ok(++last < mostSteps, 'it never ends');
    await begin(stage, one);
    await stage.volumes.setUp(podOf('a', one));
    crashed = await crashAt(last, () => stage.volumes.tearDown('a'));
    await stage.next();
    if (one.shared) assert.ok(!stage.driver.names().includes('NodeUnstageVolume'), 'taken from the other');
    await tearDownAll(stage);
    await checkGone(stage);
  }
  assert.ok(last > 10, `only ${last} steps were seen`);
  t.diagnostic(`${last} steps`);
}

const skip = process.getuid?.() === 0 ? false : 'needs root to mount';
const noLoop = skip || (existsSync('/dev/loop-control') ? false : 'the kernel has no loop devices');

// Side by side: most of the time is waiting for the kernel to take mounts away.
test('the agent gone at any step', { skip, concurrency: 14 }, async (t) => {
  await Promise.all(
    Object.entries(cases).flatMap(([name, one]) => {
      const options = { skip: one.device ? noLoop : skip };
      return [
        t.test(`${name}: gone while it is made`, options, (t) => crashInSetUp(t, one)),
        t.test(`${name}: gone while it is taken away`, options, (t) => crashInTearDown(t, one)),
      ];
    }),
  );
});
