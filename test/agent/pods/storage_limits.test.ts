import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Pod } from '../../../agent/apiserver/types.ts';
import {
  hasContainerLimits,
  limitedEmptyDirs,
  podStorageLimit,
  type StorageUse,
  storageExcess,
} from '../../../agent/pods/eviction/storage_limits.ts';
import { diskUsage, measureStorage } from '../../../agent/pods/eviction/storage_use.ts';
import { watchStorage } from '../../../agent/pods/eviction/storage_watch.ts';
import type { RuntimeStats } from '../../../runtime/api.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

const limited = (name: string, limit?: string, rest: object = {}) => ({
  name,
  image: 'i',
  ...(limit === undefined ? {} : { resources: { limits: { 'ephemeral-storage': limit } } }),
  ...rest,
});

const podOf = (spec: object, metadata: object = {}): Pod => ({
  metadata: { name: 'p', namespace: 'ns', uid: 'u', ...metadata },
  spec: { containers: [limited('a')], ...spec } as NonNullable<Pod['spec']>,
});

const useOf = (use: {
  emptyDirs?: Record<string, number>;
  containers?: Record<string, number>;
  logs?: Record<string, number>;
  total?: number;
}): StorageUse => ({
  emptyDirs: new Map(Object.entries(use.emptyDirs ?? {})),
  containers: new Map(Object.entries(use.containers ?? {})),
  logs: new Map(Object.entries(use.logs ?? {})),
  total: use.total ?? 0,
});

const Mi = 1 << 20;

test('a volume may have as much as its limit, in the words of kubelet beyond it', () => {
  const pod = podOf({
    volumes: [
      { name: 'free', emptyDir: {} },
      { name: 'none', emptyDir: { sizeLimit: '0' } },
      { name: 'memory', emptyDir: { medium: 'Memory', sizeLimit: '1Mi' } },
      { name: 'disk', emptyDir: { sizeLimit: '1Mi' } },
    ],
  });
  assert.deepEqual(limitedEmptyDirs(pod), [{ name: 'disk', limit: '1Mi' }]);
  const others = { free: 9 * Mi, none: 9 * Mi, memory: 9 * Mi };
  assert.equal(storageExcess(pod, useOf({ emptyDirs: { ...others, disk: Mi } })), undefined);
  assert.equal(
    storageExcess(pod, useOf({ emptyDirs: { ...others, disk: Mi + 1 } })),
    'Usage of EmptyDir volume "disk" exceeds the limit "1Mi". ',
  );
  assert.equal(storageExcess(pod, useOf({})), undefined, 'what was not measured exceeds nothing');
});

test('containers and the pod as a whole have limits', () => {
  const pod = podOf({ containers: [limited('a', '10Mi'), limited('b')] });
  assert.equal(hasContainerLimits(pod), true);
  assert.equal(hasContainerLimits(podOf({})), false);
  assert.equal(
    storageExcess(pod, useOf({ total: 10 * Mi, containers: { a: 10 * Mi, b: 99 * Mi } })),
    undefined,
  );
  assert.equal(
    storageExcess(pod, useOf({ total: 10 * Mi + 1 })),
    'Pod ephemeral local storage usage exceeds the total limit of containers 10Mi. ',
  );
  const two = podOf({ containers: [limited('a', '10Mi'), limited('b', '20Mi')] });
  const use = useOf({ total: 11 * Mi, containers: { a: 11 * Mi }, logs: { a: Mi } });
  assert.equal(storageExcess(two, use), 'Container a exceeded its local ephemeral storage limit "10Mi". ');
  assert.equal(storageExcess(two, use, true), undefined, 'images have a disk of their own');
  // Only the volumes of a pod count against the limits of a pod without any.
  assert.equal(storageExcess(podOf({}), useOf({ total: 1e12, containers: { a: 1e12 } })), undefined);
});

test('the limit of a pod is the sum over its containers, or what its largest init container has', () => {
  const textOf = (spec: object) => podStorageLimit(podOf(spec))?.text;
  assert.equal(textOf({}), undefined);
  assert.equal(textOf({ containers: [limited('a', '512Mi'), limited('b', '512Mi')] }), '1Gi');
  assert.equal(textOf({ containers: [limited('a', '1G'), limited('b', '500M')] }), '1500M');
  assert.equal(textOf({ containers: [limited('a', '1500')] }), '1500');
  const always = { restartPolicy: 'Always' };
  assert.equal(
    textOf({
      containers: [limited('a', '1Mi')],
      initContainers: [limited('s', '2Mi', always), limited('i', '9Mi')],
    }),
    '11Mi',
  );
  assert.equal(
    textOf({
      containers: [limited('a', '10Mi')],
      initContainers: [limited('s', '2Mi', always), limited('i', '9Mi')],
    }),
    '12Mi',
  );
  // An init container's own limit is not one of the running pod.
  assert.equal(textOf({ initContainers: [limited('i', '9Mi')] }), undefined);
});

const noStats: Pick<RuntimeStats, 'listContainerStats'> = {
  listContainerStats: async () => assert.fail('not asked'),
};
const forever = new AbortController().signal;

async function folder(t: { after(end: () => Promise<void>): void }): Promise<string> {
  const made = await mkdtemp(join(tmpdir(), 'keelson-test-storage-'));
  t.after(() => rm(made, { recursive: true, force: true }));
  return made;
}

test('measures what the limits need: volumes, logs, and what containers wrote', async (t) => {
  const root = await folder(t);
  const volumes = join(root, 'pods/u/volumes');
  const logs = join(root, 'logs/ns_p_u/a');
  for (const name of [
    'kubernetes.io~empty-dir/one\nname',
    'kubernetes.io~empty-dir/free',
    'kubernetes.io~configmap/c',
  ])
    await mkdir(join(volumes, name), { recursive: true });
  await mkdir(logs, { recursive: true });
  const block = Buffer.alloc(64 << 10, 1);
  await writeFile(join(volumes, 'kubernetes.io~empty-dir/one\nname/file'), block);
  await symlink('/', join(volumes, 'kubernetes.io~empty-dir/one\nname/link'));
  await writeFile(join(volumes, 'kubernetes.io~empty-dir/free/file'), block);
  await writeFile(join(volumes, 'kubernetes.io~configmap/c/file'), block);
  await writeFile(join(logs, '0.log'), block);
  const options = { kubeletDir: root, podLogsDir: join(root, 'logs') };
  const inside = [
    { name: 'free', emptyDir: {} },
    { name: 'one\nname', emptyDir: { sizeLimit: '1Mi' } },
  ];

  const volumesOnly = podOf({ volumes: inside });
  const first = await measureStorage([volumesOnly], { ...options, runtime: noStats }, forever);
  const { emptyDirs, containers } = first.get('u')!;
  assert.deepEqual([...emptyDirs.keys()], ['one\nname']);
  const size = emptyDirs.get('one\nname')!;
  assert.ok(size >= block.length && size < 2 * block.length, `${size} is the file and its folder`);
  assert.equal(containers.size, 0);

  const runtime = {
    listContainerStats: async (filter?: { labels?: object }) => {
      assert.deepEqual(filter, { labels: { 'io.kubernetes.pod.uid': 'u' } });
      return [{ metadata: { name: 'a', attempt: 0 }, writableLayer: { usedBytes: 1000 } }] as never;
    },
  };
  const whole = podOf({ containers: [limited('a', '1Gi')], volumes: inside });
  const use = (await measureStorage([whole], { ...options, runtime }, forever)).get('u')!;
  assert.equal(use.emptyDirs.size, 2);
  assert.equal(use.containers.get('a')! - 1000, use.logs.get('a')!);
  assert.ok(use.total >= 4 * block.length + 1000 && use.total < 5 * block.length, String(use.total));
});

test('what is not there has no size, and says nothing of the others', async (t) => {
  const root = await folder(t);
  const sizes = await diskUsage([join(root, 'none'), root], forever);
  assert.deepEqual([...sizes.keys()], [root]);
  assert.deepEqual(await diskUsage([], forever), new Map());
});

function watchRig() {
  const timers: { ms: number; run: () => void; over: boolean }[] = [];
  const asked: string[][] = [];
  const evicted: string[] = [];
  let passed = 0;
  let use: Map<string, StorageUse> | Error = new Map();
  const watch = watchStorage({
    measure: async (pods) => {
      asked.push(pods.map(({ metadata }) => metadata!.uid!));
      passed += 1000;
      if (use instanceof Error) throw use;
      return use;
    },
    imagesApart: async () => false,
    evict: ({ metadata }, { reason, message, graceMs, condition }) => {
      evicted.push(`${metadata!.uid} ${reason} ${message}${graceMs} ${condition}`);
      return true;
    },
    clock: {
      now: () => passed,
      monotonic: () => passed,
      after: (ms, run) => {
        const timer = { ms, run, over: false };
        timers.push(timer);
        return () => {
          timer.over = true;
        };
      },
    },
    log: makeLogger('silent'),
  });
  return {
    watch,
    asked,
    evicted,
    timers,
    gives: (next: typeof use) => {
      use = next;
    },
    /** Lets the only timer that is due end, and what follows. */
    async tick() {
      const due = timers.filter(({ over }) => !over);
      assert.equal(due.length, 1, 'one timer waits');
      due[0]!.over = true;
      due[0]!.run();
      await new Promise((resolve) => setImmediate(resolve));
      return due[0]!.ms;
    },
  };
}

const small = (uid: string, metadata: object = {}) =>
  podOf({ volumes: [{ name: 'v', emptyDir: { sizeLimit: '1Mi' } }] }, { uid, ...metadata });

test('nothing is looked at for pods without limits, nor for those that are going', async () => {
  const rig = watchRig();
  rig.watch.update([podOf({}), small('going', { deletionTimestamp: '2026-01-01T00:00:00Z' })]);
  assert.equal(rig.timers.length, 0);
  await rig.watch.close();
});

test('a pod over its limit is evicted within a second; the disk rests after a long look', async () => {
  const rig = watchRig();
  rig.watch.update([small('x'), small('y')]);
  rig.watch.update([small('x'), small('y'), podOf({})]);
  rig.gives(
    new Map([
      ['x', useOf({ emptyDirs: { v: 2 * Mi } })],
      ['y', useOf({})],
    ]),
  );
  assert.equal(await rig.tick(), 10_000);
  assert.deepEqual(rig.asked, [['x', 'y']]);
  assert.deepEqual(rig.evicted, [
    'x Evicted Usage of EmptyDir volume "v" exceeds the limit "1Mi". 1000 undefined',
  ]);
  rig.gives(new Error('a disk that does not answer'));
  assert.equal(await rig.tick(), 20_000, 'twenty times what the look took');
  rig.watch.update([]);
  await rig.tick();
  assert.equal(rig.asked.length, 2, 'nobody is left to look at');
  assert.deepEqual(
    rig.timers.filter(({ over }) => !over),
    [],
  );
  rig.watch.update([small('z')]);
  rig.gives(new Map());
  await rig.tick();
  assert.deepEqual(rig.asked.at(-1), ['z']);
  await rig.watch.close();
  assert.deepEqual(
    rig.timers.filter(({ over }) => !over),
    [],
  );
});
