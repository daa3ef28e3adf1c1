/** Pulls from a registry: what is tried again, shared, aborted and read from the middle. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';
import { openRepository } from '../../images/registry/repository.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { type BuiltImage, buildImage, descriptor } from '../peers/image.ts';
import { onDisk, openImages, openRegistries } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const image = buildImage({
  layers: [
    { files: [{ path: 'one', content: 'x'.repeat(100_000) }], compression: 'none' },
    { files: [{ path: 'two', content: 'y' }] },
  ],
});
const [one, two] = image.layers as [BuiltImage['layers'][number], BuiltImage['layers'][number]];

test('what is transient is tried again', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const faults: ((response: ServerResponse) => void)[] = [
    (response) => response.writeHead(503).end(),
    (response) => response.destroy(),
  ];
  registry.intercept = (request, response) => {
    if (request.url?.includes('/manifests/') || registry.count(request.url ?? '') > faults.length)
      return false;
    faults[registry.count(request.url ?? '') - 1]?.(response);
    return true;
  };
  const { images } = await openImages(t);
  assert.equal(await images.pullImage({ image: `${registry.host}/a:1` }), image.id);
  assert.equal(registry.count(one.digest), 3);
});

test('a blob is read from an offset on, or from where the registry begins', async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const repository = await openRepository(openRegistries(t), registry.host, 'a', []);
  const read = async (offset: number) => {
    const { body, offset: begins } = await repository.blob(descriptor(one), offset);
    const chunks: Buffer[] = [];
    for await (const chunk of body) chunks.push(chunk);
    assert.deepEqual(Buffer.concat(chunks), one.data.subarray(begins));
    return begins;
  };
  assert.equal(await read(0), 0);
  registry.intercept = (_, response) => {
    response.end(one.data); // As one that knows no ranges.
    return true;
  };
  assert.equal(await read(5), 0);
  let status = 206;
  let says = (from: number) => from;
  registry.intercept = (request, response) => {
    const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? '')?.[1]);
    if (Number.isNaN(from)) return false;
    response.writeHead(status, {
      'content-range': `bytes ${says(from)}-${one.data.length - 1}/${one.data.length}`,
    });
    response.end(status === 206 ? one.data.subarray(from) : '');
    return true;
  };
  assert.equal(await read(5), 5);
  assert.equal(await read(one.data.length - 1), one.data.length - 1);
  status = 416;
  assert.equal(await read(5), 0);
  [status, says] = [206, (from) => from + 1];
  await assert.rejects(read(5), { code: 'REGISTRY_UNAVAILABLE', message: /another range than asked for/ });
});

test('many callers share one pull and images share one fetch of a layer', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const sibling = buildImage({
    layers: [{ files: [{ path: 'one', content: 'x'.repeat(100_000) }], compression: 'none' }],
    config: { User: 'other' },
  });
  registry.image('2', sibling);
  const held: (() => void)[] = [];
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith(one.digest)) return false;
    held.push(() => response.end(one.data));
    if (registry.count(image.config.digest) > 0 && registry.count(sibling.config.digest) > 0)
      for (const go of held) setTimeout(go, 100);
    return true;
  };
  const { images } = await openImages(t);
  const ids = await Promise.all([
    ...Array.from({ length: 10 }, () => images.pullImage({ image: `${registry.host}/a:1` })),
    images.pullImage({ image: `${registry.host}/a:2` }),
  ]);
  assert.deepEqual(new Set(ids), new Set([image.id, sibling.id]));
  for (const path of ['/1', '/2', one.digest, two.digest]) assert.equal(registry.count(path), 1, path);
});

test('an abort ends one wait; the last one ends the fetch', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const closed = Promise.withResolvers<void>();
  const reached = Promise.withResolvers<void>();
  let hang = true;
  registry.intercept = (request, response) => {
    if (!hang || !request.url?.endsWith(one.digest)) return false;
    response.writeHead(200, { 'content-length': one.data.length });
    response.write(one.data.subarray(0, 1000));
    response.once('close', closed.resolve);
    reached.resolve();
    return true;
  };
  const { images, folder } = await openImages(t);
  const [a, b] = [new AbortController(), new AbortController()];
  const name = { image: `${registry.host}/a:1` };
  const first = images.pullImage(name, { signal: a.signal });
  const second = images.pullImage(name, { signal: b.signal });
  await reached.promise;
  a.abort();
  await assert.rejects(first, { code: 'ABORTED' });
  assert.equal(await Promise.race([second, Promise.resolve('goes on')]), 'goes on');
  b.abort();
  await assert.rejects(second, { code: 'ABORTED' });
  await closed.promise;
  await assert.rejects(images.pullImage(name, { signal: AbortSignal.abort() }), { code: 'ABORTED' });
  hang = false;
  assert.equal(await images.pullImage(name), image.id);
  assert.equal(registry.count('/1'), 2);
  assert.equal(onDisk(folder).layers.length, 2);
});

test('closing ends pulls', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const reached = Promise.withResolvers<void>();
  registry.intercept = (request) => {
    if (!request.url?.endsWith(one.digest)) return false;
    reached.resolve();
    return true;
  };
  const { images, folder, close } = await openImages(t);
  const pull = images.pullImage({ image: `${registry.host}/a:1` });
  const failed = assert.rejects(pull, { code: 'ABORTED' });
  await reached.promise;
  await close();
  await failed;
  assert.deepEqual(onDisk(folder).staging, []);
});

test('an answer that is not needed does not keep its connection', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const closed: Promise<unknown>[] = [];
  registry.intercept = (request, response) => {
    if (request.url?.startsWith('/token')) {
      response.writeHead(500).end();
      return true;
    }
    closed.push(once(response, 'close'));
    response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${registry.host}/token"` });
    response.end(Buffer.alloc(32 << 20));
    return true;
  };
  const { images } = await openImages(t);
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), { code: 'REGISTRY_UNAVAILABLE' });
  assert.ok(closed.length > 0);
  await Promise.all(closed);
});

test('a caller without interest in the progress leaves it to the others', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const reached = Promise.withResolvers<void>();
  let go = () => {};
  registry.intercept = (request, response) => {
    if (!request.url?.endsWith('/1') || registry.count('/1') > 1) return false;
    go = () => {
      response.writeHead(200, { 'content-type': image.manifest.mediaType }).end(image.manifest.data);
    };
    reached.resolve();
    return true;
  };
  const { images } = await openImages(t);
  const name = { image: `${registry.host}/a:1` };
  const leaving = new AbortController();
  const first = assert.rejects(images.pullImage(name, { signal: leaving.signal }), { code: 'ABORTED' });
  const phases = new Set<string>();
  const second = images.pullImage(name, { onProgress: ({ phase }) => phases.add(phase) });
  await reached.promise;
  leaving.abort();
  await first;
  go();
  await second;
  assert.ok(phases.has('done'), [...phases].join());
});
