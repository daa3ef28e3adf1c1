/** runtime.v1.ImageService through a real gRPC client, over the real store and a real registry. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { status } from '@grpc/grpc-js';
import { serveCri } from '../../runtime/cri/serve.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { buildImage, pushImage } from '../peers/image.ts';
import { openImages, temporaryFolder } from '../peers/image-store.ts';
import { hasRegistry, startRegistry } from '../peers/registry.ts';
import { criClient } from './client.ts';

const skip = hasRegistry() ? false : 'docker-registry is missing';

async function stage(t: TestContext) {
  const [registry, store] = await Promise.all([startRegistry(t), openImages(t)]);
  const socket = join(temporaryFolder(t), 'cri.sock');
  const server = await serveCri({
    socket,
    runtime: undefined as never,
    images: store.images,
    log: makeLogger('silent'),
    clock: systemClock,
    describeImage: ({ id }) => ({ known: id }),
  });
  const cri = criClient(socket);
  t.after(async () => {
    cri.close();
    await server.close();
  });
  return { registry, cri };
}

test('an image is pulled, told of and removed', { skip }, async (t) => {
  const { registry, cri } = await stage(t);
  const image = buildImage({
    layers: [{ files: [{ path: 'hello', content: 'x' }] }],
    config: { User: '1000:1000' },
  });
  const digest = await pushImage(registry.host, 'box:1', image);
  await pushImage(registry.host, 'box:2', image);
  const name = `${registry.host}/box:1`;
  assert.equal((await cri.call('ImageStatus', { image: { image: name } })).image, undefined);
  const { imageRef } = await cri.call('PullImage', {
    image: { image: name },
    sandboxConfig: { metadata: { name: 'p', uid: 'u', namespace: 'n' } },
    auth: { username: 'nobody', password: 'asks' },
  });
  assert.equal(imageRef, image.id);
  await cri.call('PullImage', { image: { image: `${registry.host}/box:2` } });
  const { image: found, info } = await cri.call('ImageStatus', { image: { image: name }, verbose: true });
  assert.equal(found?.id, imageRef);
  assert.deepEqual(found.repoTags.toSorted(), [`${registry.host}/box:1`, `${registry.host}/box:2`]);
  assert.deepEqual(found.repoDigests, [`${registry.host}/box@${digest}`]);
  assert.deepEqual(found.uid, { value: 1000n });
  assert.deepEqual(JSON.parse(info['info']!), { known: imageRef });
  assert.ok(found.size > 0n);
  const { images } = await cri.call('ListImages', { filter: { image: { image: name } } });
  assert.deepEqual(
    images.map(({ id }) => id),
    [imageRef],
  );
  assert.deepEqual(
    (await cri.collect('StreamImages', {})).flatMap((part) => part.images.map(({ id }) => id)),
    [imageRef],
  );
  const usage = await cri.call('ImageFsInfo', {});
  assert.ok(usage.imageFilesystems[0]!.usedBytes!.value > 0n);
  assert.equal(usage.containerFilesystems[0]?.fsId?.mountpoint, usage.imageFilesystems[0]?.fsId?.mountpoint);
  for (let time = 0; time < 2; time++) await cri.call('RemoveImage', { image: { image: imageRef } });
  assert.deepEqual((await cri.call('ListImages', {})).images, []);
});

test('what is wrong with an image has its code', { skip }, async (t) => {
  const { registry, cri } = await stage(t);
  for (const [image, code] of [
    [`${registry.host}/absent:1`, status.NOT_FOUND],
    ['docker.io/UPPER/case', status.INVALID_ARGUMENT],
    ['../../etc/passwd', status.INVALID_ARGUMENT],
    ['', status.INVALID_ARGUMENT],
    ['127.0.0.1:1/nobody:1', status.UNAVAILABLE],
  ] as const) {
    await assert.rejects(
      cri.call('PullImage', { image: { image } }, { deadlineMs: 60_000 }),
      (error: { code?: number; details?: string }) => {
        assert.equal(error.code, code, `${image}: ${error.details}`);
        return true;
      },
    );
  }
  await assert.rejects(cri.call('PullImage', {}), { code: status.INVALID_ARGUMENT });
  await assert.rejects(cri.call('ImageStatus', { image: { image: 'a b' } }), {
    code: status.INVALID_ARGUMENT,
  });
});
