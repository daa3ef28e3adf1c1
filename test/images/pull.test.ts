/** Pulls from Debian's docker-registry. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { type BuiltImage, buildImage, busyboxImage, pushImage, pushIndex } from '../peers/image.ts';
import { onDisk, openImages } from '../peers/image-store.ts';
import { hasRegistry, startRegistry } from '../peers/registry.ts';

const skip =
  process.getuid?.() !== 0 ? 'needs root' : hasRegistry() ? false : 'needs the package docker-registry';

const small = (content: string, options: Partial<Parameters<typeof buildImage>[0]> = {}): BuiltImage =>
  buildImage({
    layers: [{ files: [{ path: 'base', content: 'base' }] }, { files: [{ path: 'content', content }] }],
    config: { Cmd: ['x'], User: '12:34' },
    ...options,
  });

const blobRequests = (log: string) => (log.match(/"GET \/v2\/\S+\/blobs\//g) ?? []).length;

test('an image of several layers is pulled, described and mounted', { skip }, async (t) => {
  const registry = await startRegistry(t);
  const image = busyboxImage({ config: { User: 'www-data', StopSignal: 'SIGINT' } });
  const digest = await pushImage(registry.host, 'library/busybox:1', image);
  const { images, folder } = await openImages(t);
  const reference = `${registry.host}/library/busybox:1`;
  assert.equal(await images.imageStatus({ image: reference }), undefined);
  await assert.rejects(images.forContainer(reference), { code: 'IMAGE_NOT_PRESENT' });

  const phases = new Map<string, string[]>();
  const id = await images.pullImage(
    { image: reference },
    { onProgress: (step) => phases.set(step.digest, [...(phases.get(step.digest) ?? []), step.phase]) },
  );
  assert.equal(id, image.id);
  assert.deepEqual([...phases.keys()].sort(), image.layers.map((layer) => layer.digest).sort());
  for (const steps of phases.values()) {
    assert.deepEqual([...new Set(steps)], ['waiting', 'downloading', 'verifying', 'done']);
  }
  const described = {
    id,
    repoTags: [reference],
    repoDigests: [`${registry.host}/library/busybox@${digest}`],
    username: 'www-data',
    pinned: false,
  };
  const { size, ...rest } = (await images.imageStatus({ image: id }))!;
  assert.deepEqual(rest, described);
  assert.ok(size > 1_000_000);
  assert.deepEqual(await images.listImages(), [{ size, ...described }]);
  assert.deepEqual(await images.listImages({ image: 'nothing/like/it' }), []);
  assert.equal((await images.imageFsInfo()).usedBytes, size);

  const found = await images.forContainer(reference);
  assert.equal(found.digestRef, described.repoDigests[0]);
  assert.equal(found.config.StopSignal, 'SIGINT');
  assert.equal(found.layers.length, 3);
  assert.equal(
    readFileSync(join(found.layers[0]!, 'www/index.html'), 'utf8'),
    '<h1>It works: keelson test page</h1>\n',
  );
  const output = mounted(folder, found.layers, (root) =>
    execFileSync('chroot', [root, '/bin/sh', '-c', 'id -un; cat /www/index.html'], { encoding: 'utf8' }),
  );
  assert.equal(output, 'root\n<h1>It works: keelson test page</h1>\n');
  assert.deepEqual(onDisk(folder).staging, []);
});

function mounted<T>(folder: string, layers: readonly string[], body: (root: string) => T): T {
  const [root, upper, work] = ['root', 'upper', 'work'].map((name) => {
    mkdirSync(join(folder, name));
    return join(folder, name);
  }) as [string, string, string];
  const options = `lowerdir=${layers.join(':')},upperdir=${upper},workdir=${work}`;
  execFileSync('mount', ['-t', 'overlay', 'overlay', '-o', options, root]);
  try {
    return body(root);
  } finally {
    execFileSync('umount', [root]);
  }
}

test('an index gives the image of the platform; a digest names exactly one', { skip }, async (t) => {
  const registry = await startRegistry(t);
  const [amd, armSeven, armSix] = [
    { os: 'linux', architecture: 'amd64' },
    { os: 'linux', architecture: 'arm', variant: 'v7' },
    { os: 'linux', architecture: 'arm', variant: 'v6' },
  ].map((platform) => small(JSON.stringify(platform), { platform })) as [BuiltImage, BuiltImage, BuiltImage];
  const indexDigest = await pushIndex(registry.host, 'multi:1', [armSix, amd, armSeven]);
  const image = `${registry.host}/multi:1`;
  const { images } = await openImages(t, { platform: { os: 'linux', architecture: 'arm', variant: 'v7' } });
  assert.equal(await images.pullImage({ image }), armSeven.id);
  assert.deepEqual((await images.imageStatus({ image }))?.repoDigests, [
    `${registry.host}/multi@${indexDigest}`,
  ]);
  const byDigest = `${registry.host}/multi@${armSix.manifest.digest}`;
  assert.equal(await images.pullImage({ image: byDigest }), armSix.id);
  assert.equal((await images.imageStatus({ image: byDigest }))?.id, armSix.id);
  assert.equal(await images.pullImage({ image: `${registry.host}/multi:x@${indexDigest}` }), armSeven.id);
  await assert.rejects(images.pullImage({ image: `${registry.host}/multi@${amd.manifest.digest}` }), {
    code: 'IMAGE_PLATFORM_MISSING',
  });
});

test('a tag that has not moved costs one request; one that has moved fetches only what is new', {
  skip,
}, async (t) => {
  const registry = await startRegistry(t);
  const { images, folder } = await openImages(t);
  const image = `${registry.host}/app:1`;
  const [first, second] = [small('one'), small('two')];
  await pushImage(registry.host, 'app:1', first);
  await images.pullImage({ image });
  const before = blobRequests(registry.log());
  assert.equal(before, 3);
  assert.equal(await images.pullImage({ image }), first.id);
  await pushImage(registry.host, 'app:2', first);
  assert.equal(await images.pullImage({ image: `${registry.host}/app:2` }), first.id);
  assert.equal(blobRequests(registry.log()), before);

  await pushImage(registry.host, 'app:1', second);
  assert.equal(await images.pullImage({ image }), second.id);
  assert.equal(blobRequests(registry.log()), before + 2);
  assert.equal(onDisk(folder).layers.length, 3);
  assert.deepEqual((await images.imageStatus({ image: first.id }))?.repoTags, [`${registry.host}/app:2`]);

  await images.removeImage({ image: first.id });
  await images.removeImage({ image: first.id });
  assert.equal(await images.imageStatus({ image: `${registry.host}/app:2` }), undefined);
  const { layers } = await images.forContainer(image);
  assert.deepEqual(
    layers.map((layer) => readdirSync(layer)),
    [['content'], ['base']],
  );
});

test('zstd, uncompressed and Docker schema 2 images are pulled', { skip }, async (t) => {
  const registry = await startRegistry(t);
  const { images } = await openImages(t);
  const image = buildImage({
    layers: (['zstd', 'none', 'gzip'] as const).map((compression) => ({
      compression,
      files: [{ path: compression, content: compression.repeat(1000) }],
    })),
  });
  await pushImage(registry.host, 'kinds:1', image);
  await images.pullImage({ image: `${registry.host}/kinds:1` });
  const { layers } = await images.forContainer(image.id);
  assert.deepEqual(
    layers.map((layer) => readdirSync(layer)),
    [['gzip'], ['none'], ['zstd']],
  );
  const docker = small('docker', { docker: true });
  await pushImage(registry.host, 'docker:1', docker);
  assert.equal(await images.pullImage({ image: `${registry.host}/docker:1` }), docker.id);
});

test('an image pushed by skopeo is the same image', { skip }, async (t) => {
  const registry = await startRegistry(t);
  const image = busyboxImage();
  await pushImage(registry.host, 'a:1', image);
  try {
    execFileSync(
      'skopeo',
      [
        'copy',
        '--quiet',
        '--src-tls-verify=false',
        '--dest-tls-verify=false',
        `docker://${registry.host}/a:1`,
        `docker://${registry.host}/b:1`,
      ],
      { stdio: 'pipe' },
    );
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return t.skip('needs the package skopeo');
    throw error;
  }
  const { images } = await openImages(t);
  assert.equal(await images.pullImage({ image: `${registry.host}/b:1` }), image.id);
});

test('an unknown tag or repository is not found; a registry that is away is unavailable', {
  skip,
}, async (t) => {
  const registry = await startRegistry(t);
  const { images } = await openImages(t);
  await pushImage(registry.host, 'app:1', small('x'));
  for (const name of ['app:2', 'other:1']) {
    await assert.rejects(images.pullImage({ image: `${registry.host}/${name}` }), {
      code: 'IMAGE_NOT_FOUND',
      message: new RegExp(`manifest ${registry.host}/${name}: not found`),
    });
  }
  await registry.close();
  await assert.rejects(images.pullImage({ image: `${registry.host}/app:1` }), {
    code: 'REGISTRY_UNAVAILABLE',
    message: new RegExp(`${registry.host}/app:1`),
  });
});

test('everybody who listens hears of every layer, and the numbers add up', { skip }, async (t) => {
  const registry = await startRegistry(t);
  const [first, second] = [small('one'), small('two')];
  await pushImage(registry.host, 'app:1', first);
  await pushImage(registry.host, 'app:2', second);
  const { images } = await openImages(t);
  const heard: string[] = [];
  const end = images.events(({ image, digest, phase }) => heard.push(`${image} ${digest} ${phase}`));
  const own: string[] = [];
  await images.pullImage(
    { image: `${registry.host}/app:1` },
    { onProgress: ({ image, digest, phase }) => own.push(`${image} ${digest} ${phase}`) },
  );
  assert.ok(heard.length >= 8);
  assert.deepEqual(heard, own);
  end();
  end();
  await images.pullImage({ image: `${registry.host}/app:2` });
  assert.equal(heard.length, own.length);
  const blobs = new Map([...first.layers, ...second.layers].map(({ digest, data }) => [digest, data.length]));
  assert.deepEqual(images.fetchMetrics(), {
    bytesFetched: [...blobs.values()].reduce((sum, bytes) => sum + bytes),
    layersFetched: 3,
    layersResumed: 0,
    retries: 0,
    layersFailed: 0,
    layersInFlight: 0,
    layersWaiting: 0,
    bytesInFlight: 0,
  });
});
