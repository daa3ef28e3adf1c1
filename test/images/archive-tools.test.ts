/** Archives as skopeo, umoci and containerd write them. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { namedLayout, tarOf, writeFolder } from '../peers/archive.ts';
import { startCtr } from '../peers/ctr.ts';
import { buildImage } from '../peers/image.ts';
import { openImages, temporaryFolder } from '../peers/image-store.ts';

const has = (program: string): boolean =>
  (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, program)));
const skip = (program: string): string | false =>
  process.getuid?.() !== 0 ? 'needs root' : has(program) ? false : `needs the package ${program}`;
const run = (program: string, ...args: string[]): string =>
  execFileSync(program, args, { encoding: 'utf8', stdio: 'pipe' });

const image = buildImage({
  layers: [
    { files: [{ path: 'base', content: 'base'.repeat(1000) }] },
    { files: [{ path: 'app', content: 'app' }], compression: 'none' },
  ],
});
const named = [{ image, tags: ['example.org/team/app:1'] }];

async function expectImported(
  t: TestContext,
  path: string,
  tags: readonly string[],
  id = image.id,
): Promise<void> {
  const { images } = await openImages({ after: (fn) => t.after(fn) });
  assert.deepEqual(
    (await images.importImages(path)).map((found) => [found.id, [...found.repoTags].sort()]),
    [[id, tags]],
    path,
  );
  const { layers } = await images.forContainer(id);
  assert.deepEqual(layers.map((layer) => readdirSync(layer)).slice(-2), [['app'], ['base']]);
}

test('skopeo: docker-archive, oci-archive and oci', { skip: skip('skopeo') }, async (t) => {
  const folder = temporaryFolder({ after: (fn) => t.after(fn) });
  writeFolder(join(folder, 'source'), namedLayout(named));
  const source = `oci:${join(folder, 'source')}:example.org/team/app:1`;
  for (const transport of ['docker-archive', 'oci-archive', 'oci']) {
    const path = join(folder, transport);
    run('skopeo', '--insecure-policy', 'copy', '--quiet', source, `${transport}:${path}:quay.io/x/y:z`);
    await expectImported(t, path, ['quay.io/x/y:z']);
    if (transport === 'oci') continue;
    run('gzip', '-k', path);
    await expectImported(t, `${path}.gz`, ['quay.io/x/y:z']);
    run('zstd', '-q', path, '-o', `${path}.zst`);
    await expectImported(t, `${path}.zst`, ['quay.io/x/y:z']);
  }
});

test('umoci: a layout that it has changed, whose tags name nothing', { skip: skip('umoci') }, async (t) => {
  const folder = temporaryFolder({ after: (fn) => t.after(fn) });
  const layout = writeFolder(join(folder, 'layout'), namedLayout([{ image, tags: ['latest'] }]));
  run('umoci', 'tag', '--image', `${layout}:latest`, 'second');
  await expectImported(t, layout, []);
  run('umoci', 'config', '--image', `${layout}:latest`, '--config.cmd', 'sh');
  run('umoci', 'remove', '--image', `${layout}:second`);
  const { images } = await openImages({ after: (fn) => t.after(fn) });
  const [found] = await images.importImages(layout);
  assert.notEqual(found?.id, image.id);
  assert.deepEqual((await images.forContainer(found!.id)).config.Cmd, ['sh']);

  // And what we write, umoci reads.
  const ours = join(folder, 'ours');
  await images.exportImages([found!.id], ours, { format: 'oci-layout' });
  const index = JSON.parse(readFileSync(join(ours, 'index.json'), 'utf8'));
  index.manifests[0].annotations = { 'org.opencontainers.image.ref.name': 'it' };
  writeFileSync(join(ours, 'index.json'), JSON.stringify(index));
  run('umoci', 'unpack', '--image', `${ours}:it`, join(folder, 'bundle'));
  assert.deepEqual(readdirSync(join(folder, 'bundle/rootfs')).sort(), ['app', 'base']);
});

test('containerd: ctr images export, of one and of several platforms', {
  skip: skip('containerd'),
}, async (t) => {
  const { folder, ctr } = await startCtr(t);
  const source = join(folder, 'source.tar');
  writeFileSync(source, tarOf(namedLayout(named, 'io.containerd.image.name')));
  ctr('images', 'import', '--no-unpack', '--digests', '--base-name', 'example.org/team/app', source);
  const names = ctr('images', 'ls', '-q').trim().split('\n');
  assert.ok(names.includes('example.org/team/app:1'), names.join());
  const path = join(folder, 'exported.tar');
  ctr('images', 'export', path, ...names);
  await expectImported(t, path, ['example.org/team/app:1']);
  ctr('images', 'export', '--all-platforms', '--skip-manifest-json', `${path}.all`, ...names);
  await expectImported(t, `${path}.all`, ['example.org/team/app:1']);

  // And what we write, containerd reads.
  const { images } = await openImages({ after: (fn) => t.after(fn) });
  await images.importImages(source);
  for (const format of ['docker-archive', 'oci-archive'] as const) {
    const ours = join(folder, format);
    await images.exportImages(['example.org/team/app:1'], ours, { format });
    ctr('images', 'rm', '--sync', ...ctr('images', 'ls', '-q').trim().split('\n'));
    ctr('images', 'import', '--no-unpack', ours);
    assert.equal(ctr('images', 'ls', '-q').trim(), 'example.org/team/app:1');
  }
});
