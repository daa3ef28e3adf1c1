/**
 * A process that pulls is killed at file system calls, one after the other: strace sends SIGKILL at the nth call of a
 * kind, before the kernel does it. After each the store must be whole. Every day some points are taken, by a seed that is
 * told; `KEELSON_TEST_CRASH=all` takes every one (a quarter of an hour), `KEELSON_TEST_SEED` a day's again.
 */
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { startFakeRegistry } from '../../peers/fake-registry.ts';
import { buildImage } from '../../peers/image.ts';
import { openImages, temporaryFolder } from '../../peers/image-store.ts';

/** Those that change what is on the disk; where a kill comes between two of them makes no difference. */
const calls = [
  ...['mkdir', 'rmdir', 'unlink', 'unlinkat', 'rename', 'link', 'symlink', 'mknod', 'mknodat'],
  ...['write', 'pwrite64', 'ftruncate', 'fsync', 'fdatasync', 'syncfs', 'fallocate'],
  ...['chmod', 'fchmod', 'lchown', 'fchown', 'utimensat', 'lsetxattr', 'fsetxattr'],
];

interface Point {
  readonly call: string;
  readonly nth: number;
  /** Only those of the main thread count (SQLite's are among them), or those of each thread. */
  readonly only: 'main' | 'all';
}

const isRoot = process.getuid?.() === 0;
const hasStrace = await promisify(execFile)('strace', ['--version']).then(
  () => true,
  () => false,
);
const skip = !isRoot ? 'needs root' : !hasStrace ? 'strace is missing: apt-get install strace' : false;

const shared = { files: [{ path: 'shared/file', content: 'shared' }] };
const one = buildImage({
  layers: [shared, { files: [{ path: 'one', content: 'x'.repeat(9000), uid: 3, mode: 0o4711 }] }],
});
const two = buildImage({
  layers: [
    shared,
    {
      files: [
        { path: 'two', type: 'directory' },
        { path: 'two/file', content: 'two', xattrs: { 'user.note': 'x' } },
        { path: 'two/same', type: 'link', target: 'two/file' },
        { path: 'two/alias', type: 'symlink', target: 'file' },
        { path: 'two/.wh.gone' },
      ],
      compression: 'zstd',
    },
  ],
});
const puller = fileURLToPath(new URL('./puller.ts', import.meta.url));

/** Runs the puller under strace; resolves when it has ended, with how. */
async function run(
  options: string[],
  args: string[],
): Promise<{ code: number | null; signal: string | null }> {
  const child = spawn('strace', ['-qq', ...options, process.execPath, puller, ...args], {
    // One thread for all asynchronous file calls: their order is then the same each time.
    env: { PATH: process.env['PATH'], UV_THREADPOOL_SIZE: '1' },
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const [code, signal] = (await once(child, 'exit')) as [number | null, string | null];
  return { code, signal };
}

/** How often each call comes in one thread, at most. */
function countCalls(trace: string): Map<string, number> {
  const counts = new Map<string, number>();
  const most = new Map<string, number>();
  for (const line of trace.split('\n')) {
    const match = /^(?:(\d+)\s+)?(\w+)\(/.exec(line);
    if (match === null) continue;
    const key = `${match[1]} ${match[2]}`;
    counts.set(key, (counts.get(key) ?? 0) + 1);
    most.set(match[2]!, Math.max(most.get(match[2]!) ?? 0, counts.get(key)!));
  }
  return most;
}

/** Numbers in [0, 1), the same for the same seed (mulberry32). */
function randomFrom(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

test('a pull or removal that is killed at a file system call leaves a whole store', {
  skip,
  timeout: 7_200_000,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', one);
  registry.image('2', two);
  const names = [`${registry.host}/a:1`, `${registry.host}/a:2`];
  const root = temporaryFolder(t);
  const traced = `trace=${calls.join(',')}`;

  const points: Point[] = [];
  for (const only of ['main', 'all'] as const) {
    const folder = join(root, only);
    mkdirSync(folder);
    const trace = join(root, `${only}.trace`);
    const follow = only === 'all' ? ['-f'] : [];
    const { code } = await run([...follow, '-e', traced, '-o', trace], [folder, registry.host]);
    assert.equal(code, 0, 'the puller itself fails');
    for (const [call, count] of countCalls(readFileSync(trace, 'utf8'))) {
      for (let nth = 1; nth <= count; nth++) points.push({ call, nth, only });
    }
  }
  assert.ok(points.length > 100, `only ${points.length} points`);

  const seed = Number(process.env['KEELSON_TEST_SEED'] ?? Date.now() % 1_000_000);
  const random = randomFrom(seed);
  const isWhole = process.env['KEELSON_TEST_CRASH'] === 'all';
  const taken = isWhole
    ? points
    : Array.from({ length: 25 }, () => points[Math.floor(random() * points.length)]!);
  t.diagnostic(`${taken.length} of ${points.length} points, seed ${seed}`);

  let killed = 0;
  for (const { call, nth, only } of taken) {
    const what = `killed at ${call} number ${nth} (${only}), seed ${seed}`;
    const folder = join(root, 'store');
    mkdirSync(folder);
    const inject = `inject=${call}:signal=KILL:when=${nth}`;
    const follow = only === 'all' ? ['-f'] : [];
    const { signal } = await run(
      [...follow, '-e', `trace=${call}`, '-e', inject, '-o', '/dev/null'],
      [folder, registry.host],
    );
    if (signal === 'SIGKILL') killed++;

    const store = await openImages(t, { folder, keepBlobs: true });
    const { images, db } = store;
    const rows = () =>
      new Map(
        db
          .statement('SELECT diff_id, number FROM layers')
          .all()
          .map((row) => [String(row['diff_id']), Number(row['number'])]),
      );
    const found = await images.verifyImages();
    assert.deepEqual(
      found.filter(({ state }) => state !== 'good'),
      [],
      what,
    );
    for (const image of await images.listImages()) {
      const { layers } = await images.forContainer(image.id);
      assert.deepEqual(
        layers.map((layer) => readdirSync(layer).length > 0),
        [true, true],
        what,
      );
    }
    // What was there already is not fetched again.
    const there = new Set(rows().keys());
    const wanted = new Map([...one.layers, ...two.layers].map((layer) => [layer.digest, layer.diffId]));
    const asked = registry.seen.length;
    for (const name of names) await images.pullImage({ image: name });
    for (const { path } of registry.seen.slice(asked)) {
      const diffId = wanted.get(path.slice(path.lastIndexOf('/') + 1));
      assert.ok(diffId === undefined || !there.has(diffId), `${what}: ${path} fetched again`);
    }
    const after = await images.verifyImages();
    assert.deepEqual(
      after.map(({ state }) => state),
      ['good', 'good', 'good'],
      `${what}: ${JSON.stringify(after)}`,
    );
    const expected = [...rows().values()].flatMap((number) => [
      number.toString(36),
      `${number.toString(36)}.map`,
    ]);
    await store.close();
    assert.deepEqual(readdirSync(join(folder, 'layers')).sort(), expected.sort(), what);
    assert.deepEqual(readdirSync(join(folder, 'staging')), [], what);
    rmSync(folder, { recursive: true });
  }
  assert.ok(killed > taken.length / 2, `${killed} of ${taken.length} runs were killed`);
});
