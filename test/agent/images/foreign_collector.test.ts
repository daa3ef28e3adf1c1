/** What garbage collection is told of the images of another runtime. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeForeignCollector } from '../../../agent/images/foreign_collector.ts';
import type { Container, Image } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

const image = (id: string, over: Partial<Image> = {}): Image => ({
  id,
  repoTags: [`docker.io/library/${id}:1`],
  repoDigests: [],
  size: 10,
  pinned: false,
  ...over,
});

const container = (imageRef: string): Container => ({
  id: `of ${imageRef}`,
  podSandboxId: 's',
  metadata: { name: 'c', attempt: 0 },
  image: '',
  imageRef,
  state: 'exited',
  createdAt: 0,
  labels: {},
  annotations: {},
});

test('an image is in use by containers and by name, and ages from when it was seen or used last', async () => {
  let present = [image('a'), image('b'), image('pause', { pinned: true })];
  let containers = [container('a')];
  let now = 1000;
  const removed: string[] = [];
  const collector = makeForeignCollector({
    runtime: { listContainers: async () => containers },
    images: {
      listImages: async () => present,
      async imageStatus({ image: name }) {
        if (name === 'A B') throw new KeelsonError('IMAGE_NAME_INVALID', 'no name');
        return present.find(
          ({ id, repoTags }) => id === name || repoTags.includes(`docker.io/library/${name}`),
        );
      },
      async removeImage({ image: id }) {
        if (id === 'busy') throw new KeelsonError('RUNTIME_FAILED', 'in use');
        removed.push(id);
      },
    },
    clock: { now: () => now, monotonic: () => now, after: () => () => {} },
    log: makeLogger('silent'),
  });
  const look = async (wanted: string[] = []) =>
    (await collector.imageUse(wanted)).map(({ id, inUse, pinned, lastUsedAt }) => [
      id,
      inUse,
      pinned,
      lastUsedAt,
    ]);
  assert.deepEqual(await look(['b:1', 'A B', 'unknown:1']), [
    ['a', true, false, 1000],
    ['b', true, false, 1000],
    ['pause', false, true, 1000],
  ]);
  now = 2000;
  present = [...present, image('new')];
  assert.deepEqual(await look(), [
    ['a', true, false, 2000],
    ['b', false, false, 1000],
    ['pause', false, true, 1000],
    ['new', false, false, 2000],
  ]);
  now = 3000;
  containers = [];
  assert.deepEqual((await look())[0], ['a', false, false, 2000]);
  assert.deepEqual((await collector.imageUse([]))[1]!.layers, [{ diffId: 'b', size: 10 }]);
  assert.deepEqual([await collector.collectImage('b'), await collector.collectImage('busy')], [true, false]);
  assert.deepEqual(removed, ['b']);
  assert.equal(await collector.collectLayers(0), 0);
});
