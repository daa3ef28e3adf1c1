/** Layers go on where a connection, a pull or a process has ended. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import type { FetchPolicy } from '../../images/fetch/policy.ts';
import type { PullProgress } from '../../runtime/api.ts';
import { type FakeRegistry, startFakeRegistry } from '../peers/fake-registry.ts';
import { type Blob, type BuiltImage, buildImage, pushImage } from '../peers/image.ts';
import { onDisk, openImages, temporaryFolder } from '../peers/image-store.ts';
import { hasRegistry, startRegistry } from '../peers/registry.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const mib = 2 ** 20;

/** Writes everything down from the first bytes on, and does not wait for long. */
const eager: Partial<FetchPolicy> = {
  decideAfterBytes: 1,
  fastBytesPerSecond: Number.MAX_VALUE,
  retryDelaysMs: [5, 5, 5],
};
const content = { a: randomBytes(3 * mib), b: randomBytes(2 * mib) };
const imageOf = (compression: 'gzip' | 'zstd' | 'none'): BuiltImage =>
  buildImage({
    layers: [
      {
        files: [
          { path: 'a', content: content.a },
          { path: 'b', content: content.b },
        ],
        compression,
      },
    ],
  });
const image = imageOf('gzip');
const layer = image.layers[0]!;
const size = layer.data.length;

const partialOf = (folder: string, { digest }: Blob = layer) =>
  join(folder, 'blobs', 'partial', digest.replace(':', '-'));
const partials = (folder: string) => readdirSync(join(folder, 'blobs', 'partial'));

/** The `Range` headers that the blob was asked for with, in order. */
const ranges = (registry: FakeRegistry, { digest }: Blob = layer) =>
  registry.seen.filter(({ path }) => path.endsWith(digest)).map(({ range }) => range);

async function assertWhole(images: Awaited<ReturnType<typeof openImages>>['images'], id: string) {
  const folder = (await images.forContainer(id)).layers[0]!;
  assert.ok(readFileSync(join(folder, 'a')).equals(content.a));
  assert.ok(readFileSync(join(folder, 'b')).equals(content.b));
}

/** Resolves when the file at `path` has `bytes`. */
function untilSize(path: string, bytes: number): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (!existsSync(path) || statSync(path).size < bytes) return;
      watcher.close();
      resolve();
    };
    const watcher = watch(dirname(path), look);
    look();
  });
}

for (const compression of ['gzip', 'zstd', 'none'] as const) {
  test(`a connection that breaks is taken up where it broke (${compression})`, { skip }, async (t) => {
    const registry = await startFakeRegistry(t);
    const whole = imageOf(compression);
    const blob = whole.layers[0]!;
    registry.image('1', whole);
    // More breaks than there are tries: each of them brings something.
    const cuts = [1, 3 * mib, 4097, 100_000, 300_000, 70_001];
    registry.fail(blob, ...cuts.map((bytes) => ({ bytes, how: 'break' }) as const));
    const { images, folder } = await openImages(t, { fetchPolicy: { retryDelaysMs: [5, 5, 5] } });
    const id = await images.pullImage({ image: `${registry.host}/a:1` });
    await assertWhole(images, id);
    const begins = [0, ...cuts].map((_, at) => cuts.slice(0, at).reduce((sum, n) => sum + n, 0));
    assert.deepEqual(
      ranges(registry, blob),
      begins.map((begin) => (begin === 0 ? undefined : `bytes=${begin}-`)),
    );
    assert.equal(registry.served(blob), blob.data.length);
    const metrics = images.fetchMetrics();
    assert.equal(metrics.retries, cuts.length);
    assert.equal(metrics.bytesFetched, blob.data.length);
    assert.deepEqual([metrics.layersFetched, metrics.layersFailed, metrics.bytesInFlight], [1, 0, 0]);
    assert.deepEqual(partials(folder), []);
  });
}

test('a registry that ignores ranges sends again what is here; nothing is unpacked twice', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.ranges = false;
  registry.fail(layer, { bytes: mib, how: 'break' }, { bytes: 2 * mib, how: 'break' });
  const { images } = await openImages(t, { fetchPolicy: eager });
  await assertWhole(images, await images.pullImage({ image: `${registry.host}/a:1` }));
  assert.equal(registry.served(layer), 3 * mib + size);
});

test('tries without progress come to an end, and the next pull goes on', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.fail(layer, { bytes: 2 * mib, how: 'break' }, ...Array(3).fill({ bytes: 0, how: 'break' }));
  const { images, folder } = await openImages(t, { fetchPolicy: eager });
  const name = { image: `${registry.host}/a:1` };
  await assert.rejects(images.pullImage(name), {
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(`layer ${registry.host}/a@${layer.digest}: `),
  });
  assert.equal(registry.count(layer.digest), 4);
  assert.equal(images.fetchMetrics().layersFailed, 1);
  assert.equal(statSync(partialOf(folder)).size, 2 * mib);
  assert.equal(statSync(partialOf(folder)).mode & 0o777, 0o600);
  await assertWhole(images, await images.pullImage(name));
  assert.equal(registry.served(layer), size);
  assert.equal(images.fetchMetrics().layersResumed, 1);
});

test('silence and a trickle are broken connections', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.fail(layer, { bytes: 2 * mib, how: 'hang' });
  let trickling = false;
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(layer.digest) || registry.count(layer.digest) !== 2) return false;
    trickling = true;
    response.writeHead(206, { 'content-range': `bytes ${2 * mib}-${size - 1}/${size}` });
    let at = 2 * mib;
    const drip = setInterval(() => response.write(layer.data.subarray(at, ++at)), 20);
    response.once('close', () => clearInterval(drip));
    return true;
  };
  const { images } = await openImages(t, {
    fetchPolicy: { ...eager, stallMs: 300, minBytesPerSecond: 100_000 },
  });
  await assertWhole(images, await images.pullImage({ image: `${registry.host}/a:1` }));
  assert.ok(trickling);
  assert.equal(registry.count(layer.digest), 3);
});

test('a stall that does not end is told as one', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.fail(layer, { bytes: mib, how: 'hang' }, ...Array(3).fill({ bytes: 0, how: 'hang' }));
  const { images } = await openImages(t, { fetchPolicy: { ...eager, stallMs: 100, minBytesPerSecond: 0 } });
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), {
    code: 'REGISTRY_UNAVAILABLE',
    message: /the connection has stalled: less than 1 bytes a second for 0\.1 s/,
  });
});

test('a fast link is not written down', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.fail(layer, { bytes: 4 * mib, how: 'hang' });
  const { images, folder } = await openImages(t, {
    fetchPolicy: { decideAfterBytes: mib, decideAfterMs: 1e9, fastBytesPerSecond: 0 },
  });
  const leave = new AbortController();
  const pull = images.pullImage(
    { image: `${registry.host}/a:1` },
    { signal: leave.signal, onProgress: ({ bytes }) => bytes >= 2 * mib && leave.abort() },
  );
  await assert.rejects(pull, { code: 'ABORTED' });
  await images.close();
  assert.deepEqual(partials(folder), []);
});

test('a pull that is called off leaves its part for the next', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.fail(layer, { bytes: 2 * mib, how: 'hang' });
  const { images, folder } = await openImages(t, { fetchPolicy: eager });
  const name = { image: `${registry.host}/a:1` };
  const leave = new AbortController();
  const pull = assert.rejects(images.pullImage(name, { signal: leave.signal }), { code: 'ABORTED' });
  await untilSize(partialOf(folder), 2 * mib);
  leave.abort();
  await pull;
  await assertWhole(images, await images.pullImage(name));
  assert.deepEqual(ranges(registry), [undefined, `bytes=${2 * mib}-`]);
  assert.equal(registry.served(layer), size);
  assert.deepEqual(partials(folder), []);
  assert.deepEqual(onDisk(folder).staging, []);
  assert.equal(images.fetchMetrics().layersFailed, 0);
});

/** Pulls in a process of its own, and kills that when `bytes` of the layer are written down. */
async function killedAt(t: TestContext, folder: string, reference: string, bytes: number): Promise<void> {
  mkdirSync(join(folder, 'blobs', 'partial'), { recursive: true });
  const script = fileURLToPath(new URL('./doomed-pull.ts', import.meta.url));
  const options = { fetchPolicy: eager };
  const child = spawn(process.execPath, [script, JSON.stringify({ folder, image: reference, options })], {
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  const exited = once(child, 'exit');
  t.after(() => child.kill('SIGKILL'));
  await Promise.race([untilSize(partialOf(folder), bytes), exited.then(() => assert.fail('it ended'))]);
  child.kill('SIGKILL');
  await exited;
}

test('killed in the middle, the next process fetches only the rest', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const reference = `${registry.host}/a:1`;
  const folder = temporaryFolder(t);
  const cut = [mib + 1, 3 * mib];
  registry.fail(layer, { bytes: cut[0]!, how: 'hang' }, { bytes: cut[1]! - cut[0]!, how: 'hang' });
  await killedAt(t, folder, reference, cut[0]!);
  await killedAt(t, folder, reference, cut[1]!);
  const { images } = await openImages(t, { folder });
  assert.deepEqual(onDisk(folder).layers, []);
  const steps: PullProgress[] = [];
  await assertWhole(
    images,
    await images.pullImage({ image: reference }, { onProgress: (step) => steps.push(step) }),
  );
  assert.deepEqual(ranges(registry), [undefined, ...cut.map((at) => `bytes=${at}-`)]);
  assert.equal(registry.served(layer), size);
  assert.equal(images.fetchMetrics().bytesFetched, size - cut[1]!);
  assert.equal(steps.at(-1)?.phase, 'done');
  assert.deepEqual(partials(folder), []);
});

test('killed after the last byte, nothing is fetched again', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const folder = temporaryFolder(t);
  mkdirSync(join(folder, 'blobs', 'partial'), { recursive: true });
  writeFileSync(partialOf(folder), layer.data);
  const { images } = await openImages(t, { folder });
  await assertWhole(images, await images.pullImage({ image: `${registry.host}/a:1` }));
  assert.equal(registry.count(layer.digest), 0);
});

/** Lets bytes through to `host`, and closes the connection of a layer once after `bytes` from there. */
async function startCuttingProxy(t: TestContext, host: string, bytes: number): Promise<string> {
  const sockets = new Set<Socket>();
  const [address, port] = host.split(':') as [string, string];
  let cut = false;
  const server = createServer((client) => {
    const upstream = connect(Number(port), address);
    let passed = 0;
    for (const socket of [client, upstream]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.once('close', () => {
        client.destroy();
        upstream.destroy();
      });
    }
    client.pipe(upstream);
    upstream.on('data', (chunk: Buffer) => {
      passed += chunk.length;
      const over = passed - bytes;
      if (cut || over <= 0) return void client.write(chunk);
      cut = true;
      client.end(chunk.subarray(0, chunk.length - over));
      upstream.destroy();
    });
  }).listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  return `127.0.0.1:${(server.address() as AddressInfo).port}`;
}

test("Debian's registry goes on from the middle", {
  skip: skip || (hasRegistry() ? false : 'needs the package docker-registry'),
}, async (t) => {
  const registry = await startRegistry(t);
  await pushImage(registry.host, 'a:1', image);
  const proxy = await startCuttingProxy(t, registry.host, 2 * mib);
  const { images } = await openImages(t, { fetchPolicy: eager });
  await assertWhole(images, await images.pullImage({ image: `${proxy}/a:1` }));
  const metrics = images.fetchMetrics();
  assert.equal(metrics.retries, 1);
  assert.equal(metrics.bytesFetched, size);
  const answers = [
    ...registry.log().matchAll(new RegExp(`GET /v2/a/blobs/${layer.digest} HTTP/1.1" (\\d+)`, 'g')),
  ];
  assert.deepEqual(
    answers.map(([, status]) => status),
    ['200', '206'],
  );
});

const damages: readonly { name: string; damage: (path: string) => void; firstRange: string | undefined }[] = [
  {
    name: 'other bytes',
    damage: (path) => writeFileSync(path, randomBytes(mib)),
    firstRange: `bytes=${mib}-`,
  },
  {
    name: 'a hole where the disk lost something',
    damage: (path) => writeFileSync(path, Buffer.concat([layer.data.subarray(0, mib), Buffer.alloc(4096)])),
    firstRange: `bytes=${mib + 4096}-`,
  },
  {
    name: 'more than the layer has',
    damage: (path) => writeFileSync(path, Buffer.concat([layer.data, Buffer.from('x')])),
    firstRange: undefined,
  },
  { name: 'a folder', damage: (path) => mkdirSync(path), firstRange: undefined },
  { name: 'nothing', damage: (path) => writeFileSync(path, ''), firstRange: undefined },
];

test('a damaged part is thrown away and the layer is fetched from zero', { skip }, async (t) => {
  for (const { name, damage, firstRange } of damages) {
    const registry = await startFakeRegistry(t);
    registry.image('1', image);
    const { images, folder } = await openImages(t);
    damage(partialOf(folder));
    await assertWhole(images, await images.pullImage({ image: `${registry.host}/a:1` }));
    const asked = ranges(registry);
    assert.equal(asked[0], firstRange, name);
    assert.equal(asked.at(-1), undefined, name);
    assert.equal(asked.length, firstRange === undefined ? 1 : 2, name);
    assert.deepEqual(partials(folder), [], name);
  }
});

test('a registry that lies is asked once more from zero after a damaged part, and no more', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.blob(layer, randomBytes(size));
  const { images, folder } = await openImages(t);
  writeFileSync(partialOf(folder), layer.data.subarray(0, mib));
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), {
    message: new RegExp(layer.digest),
  });
  assert.deepEqual(ranges(registry), [`bytes=${mib}-`, undefined]);
  assert.deepEqual(partials(folder), []);
  assert.deepEqual(await images.listImages(), []);
});

test('a start removes parts that are old or too many', { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const first = await openImages(t, { folder });
  await first.close();
  const names = ['sha256-a', 'sha256-b', 'sha256-c'];
  for (const [at, name] of names.entries()) {
    const path = join(folder, 'blobs', 'partial', name);
    writeFileSync(path, 'x');
    truncateSync(path, 1000);
    execFileSync('touch', ['-d', `-${at * 3} days`, path]);
  }
  const second = await openImages(t, { folder, fetchPolicy: { partialMaxAgeMs: 4 * 24 * 3600 * 1000 } });
  assert.deepEqual(partials(folder), ['sha256-a', 'sha256-b']);
  await second.close();
  await openImages(t, { folder, fetchPolicy: { partialMaxBytes: 1500 } });
  assert.deepEqual(partials(folder), ['sha256-a']);
});

/** A folder for a store that has only `bytes` of space in its `part`. */
function smallFolder(t: TestContext, part: string, bytes: number): string {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  const path = join(folder, part);
  mkdirSync(path);
  execFileSync('mount', ['-t', 'tmpfs', '-o', `size=${bytes},mode=0700`, 'tmpfs', path]);
  t.after(() => {
    execFileSync('umount', ['-l', path]);
    rmSync(folder, { recursive: true, force: true });
  });
  return folder;
}

test('no space for the part on disk does not matter, but for a blob that must be kept', {
  skip,
}, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  for (const keepBlobs of [false, true]) {
    const folder = smallFolder(t, 'blobs', mib);
    const { images, close } = await openImages(t, { folder, keepBlobs, fetchPolicy: eager });
    const pull = images.pullImage({ image: `${registry.host}/a:1` });
    if (keepBlobs) {
      await assert.rejects(pull, {
        code: 'STORAGE_FULL',
        message: `layer ${registry.host}/a@${layer.digest}: no space is left for the layer in ${folder}`,
      });
    } else {
      await assertWhole(images, await pull);
    }
    assert.deepEqual(partials(folder), []);
    await close();
    assert.deepEqual(onDisk(folder).staging, []);
  }
});

test('no space for the layer is told with what and where', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const folder = smallFolder(t, 'staging', mib);
  const { images, close } = await openImages(t, { folder, fetchPolicy: eager });
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), (error: Error) => {
    assert.equal((error as { code?: string }).code, 'STORAGE_FULL');
    assert.ok(error.message.startsWith(`layer ${registry.host}/a@${layer.digest}: `), error.message);
    assert.ok(error.message.endsWith(`no space is left for the layer in ${folder}`), error.message);
    return true;
  });
  assert.deepEqual(partials(folder), []);
  await close();
});

test('what a part on disk makes of the archive is not blamed on the registry', { skip }, async (t) => {
  // An archive that is well-formed, but that no file system takes: a name with too long a part.
  const bad = buildImage({
    layers: [{ files: [{ path: 'n'.repeat(300), content: randomBytes(mib) }], compression: 'none' }],
  }).layers[0]!;
  const registry = await startFakeRegistry(t);
  const plain = imageOf('none');
  const blob = plain.layers[0]!;
  registry.image('1', plain);
  const { images, folder } = await openImages(t);
  writeFileSync(partialOf(folder, blob), bad.data);
  await assertWhole(images, await images.pullImage({ image: `${registry.host}/a:1` }));
  assert.deepEqual(ranges(registry, blob).at(-1), undefined);
});

test('a closed store leaves its parts to the next', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.fail(layer, { bytes: 2 * mib, how: 'hang' });
  const folder = temporaryFolder(t);
  const first = await openImages(t, { folder, fetchPolicy: eager });
  const name = { image: `${registry.host}/a:1` };
  const pull = assert.rejects(first.images.pullImage(name), { code: 'ABORTED' });
  await untilSize(partialOf(folder), 2 * mib);
  await first.close();
  await pull;
  const second = await openImages(t, { folder });
  await assertWhole(second.images, await second.images.pullImage(name));
  assert.equal(registry.served(layer), size);
});

test('a registry that wants a long pause is not asked again in this pull', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(layer.digest)) return false;
    response.writeHead(429, { 'retry-after': '3600' }).end();
    return true;
  };
  const { images } = await openImages(t, { fetchPolicy: eager });
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), {
    code: 'REGISTRY_UNAVAILABLE',
    message: /answered 429/,
  });
  assert.equal(registry.count(layer.digest), 1);
});
