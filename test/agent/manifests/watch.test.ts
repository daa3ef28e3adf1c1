import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rename, rm, symlink, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { isManifestName, type ManifestWatch, watchManifests } from '../../../agent/manifests/watch.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { type RecordingSink, recordingSink, webManifest } from './pods.ts';

interface Watching {
  readonly folder: string;
  readonly sink: RecordingSink;
  readonly errors: string[];
  readonly watch: ManifestWatch;
}

async function start(t: TestContext, name = ''): Promise<Watching> {
  const base = await mkdtemp(join(tmpdir(), 'keelson-test-manifests-'));
  const errors: string[] = [];
  const log = makeLogger('silent');
  log.error = (...args: unknown[]) => void errors.push(String(args.at(-1)));
  const sink = recordingSink();
  const folder = join(base, name);
  const watch = watchManifests({ folder, nodeName: 'Edge-1', sink, log, clock: systemClock });
  t.after(async () => {
    watch.close();
    await rm(base, { recursive: true, force: true });
  });
  await watch.ready;
  return { folder, sink, errors, watch };
}
const names = (pods: readonly { metadata?: { name?: string } }[]) =>
  pods.map(({ metadata }) => metadata?.name);
const named = (name: string) => webManifest.replace('name: web', `name: ${name}`);

test('the first list is told at once, also an empty one', async (t) => {
  const { sink } = await start(t);
  assert.deepEqual(sink.lists, [[]]);
});

test('a manifest comes, changes, and goes', async (t) => {
  const { folder, sink } = await start(t);
  await writeFile(join(folder, 'web.yaml'), webManifest);
  const [first] = await sink.until((pods) => pods.length === 1);
  assert.equal(first!.metadata!.name, 'web-edge-1');
  await writeFile(join(folder, 'web.yaml'), webManifest.replace('web:1.0', 'web:2.0'));
  const [second] = await sink.until((pods) => pods[0]?.spec?.containers[0]?.image === 'web:2.0');
  assert.equal(second!.metadata!.name, 'web-edge-1');
  assert.notEqual(second!.metadata!.uid, first!.metadata!.uid);
  await rm(join(folder, 'web.yaml'));
  await sink.until((pods) => pods.length === 0);
});

test('a broken file is told with its name and field, and its pod stays', async (t) => {
  const { folder, sink, errors } = await start(t);
  const file = join(folder, 'web.yaml');
  await writeFile(file, webManifest);
  const [running] = await sink.until((pods) => pods.length === 1);
  for (const [text, message] of [
    [
      webManifest.replace('image: web:1.0', 'image: ""'),
      /web\.yaml: invalid pod: spec\.containers\[0\]\.image/,
    ],
    ['{', /web\.yaml: not valid YAML/],
    ['', /web\.yaml: the file is empty/],
    [`${webManifest}\n---\n${webManifest}`, /web\.yaml: not valid YAML: it holds several documents/],
    ['apiVersion: v1\nkind: Service', /expected apiVersion v1 and kind Pod/],
  ] as const) {
    errors.length = 0;
    await writeFile(file, text);
    // Another file shows that the broken one has been read.
    const marker = `marker-${Math.abs(text.length)}`;
    await writeFile(join(folder, 'zz.yaml'), named(marker));
    const pods = await sink.until((list) => names(list).includes(`${marker}-edge-1`));
    assert.equal(pods[0], running);
    assert.match(errors.join('\n'), message);
    assert.match(errors.join('\n'), /the pod that runs from it is kept/);
  }
  await writeFile(file, webManifest.replace('web:1.0', 'web:3.0'));
  await sink.until((pods) => pods[0]?.spec?.containers[0]?.image === 'web:3.0');
});

test('a file that is only touched or moved over by the same content changes nothing', async (t) => {
  const { folder, sink } = await start(t);
  const file = join(folder, 'web.yaml');
  await writeFile(file, webManifest);
  const [first] = await sink.until((pods) => pods.length === 1);
  await utimes(file, 1, 1);
  await writeFile(join(folder, '.web.yaml.new'), `# a comment\n${webManifest}`);
  await rename(join(folder, '.web.yaml.new'), file);
  await writeFile(join(folder, 'zz.yaml'), named('marker'));
  const pods = await sink.until((list) => list.length === 2);
  assert.equal(pods[0], first);
});

test('hidden and editor files are not manifests', async (t) => {
  const { folder, sink } = await start(t);
  const ignored = [
    '.web.yaml',
    'web.yaml~',
    '.web.yaml.swp',
    'web.swx',
    '#web.yaml#',
    'web.yaml.dpkg-new',
    'a.bak',
  ];
  for (const name of ignored) await writeFile(join(folder, name), webManifest);
  await mkdir(join(folder, 'subfolder'));
  await symlink('/nonexistent', join(folder, 'dangling.yaml'));
  await writeFile(
    join(folder, 'web.json'),
    JSON.stringify({
      apiVersion: 'v1',
      kind: 'Pod',
      metadata: { name: 'json' },
      spec: { containers: [{ name: 'c', image: 'i' }] },
    }),
  );
  const pods = await sink.until((list) => list.length > 0);
  assert.deepEqual(names(pods), ['json-edge-1']);
  for (const name of ignored) assert.equal(isManifestName(name), false, name);
  for (const name of ['web', 'web.yaml', 'web.yml', 'a.json', 'b~c'])
    assert.equal(isManifestName(name), true, name);
});

test('two files with one pod: the first by name runs, the other is told of', async (t) => {
  const { folder, sink, errors } = await start(t);
  await writeFile(join(folder, 'b.yaml'), webManifest.replace('web:1.0', 'web:b'));
  await writeFile(join(folder, 'a.yaml'), webManifest.replace('web:1.0', 'web:a'));
  const pods = await sink.until((list) => list[0]?.spec?.containers[0]?.image === 'web:a');
  assert.equal(pods.length, 1);
  assert.match(errors.join('\n'), /default\/web-edge-1 is in another file too/);
});

test('two pods with one uid: the first by name runs, the other is told of', async (t) => {
  const { folder, sink, errors } = await start(t);
  const withUid = (name: string) => named(name).replace(`name: ${name}`, `name: ${name}\n  uid: same`);
  await writeFile(join(folder, 'b.yaml'), withUid('b'));
  await sink.until((pods) => pods.length === 1);
  await writeFile(join(folder, 'c.yaml'), withUid('c'));
  await writeFile(join(folder, 'd.yaml'), named('d'));
  const pods = await sink.until((list) => names(list).includes('d-edge-1'));
  assert.deepEqual(names(pods), ['b-edge-1', 'd-edge-1']);
  assert.match(errors.join('\n'), /static pod \w+\/c-edge-1 has a uid that is in another file too/);
});

test('a pod with a uid of its own that looks like a hash changes with its file', async (t) => {
  const { folder, sink } = await start(t);
  const uid = '0123456789abcdef0123456789abcdef';
  const text = webManifest.replace('name: web', `name: web\n  uid: ${uid}`);
  await writeFile(join(folder, 'web.yaml'), text);
  await sink.until((pods) => pods.length === 1);
  await writeFile(join(folder, 'web.yaml'), text.replace('web:1.0', 'web:2.0'));
  await writeFile(join(folder, 'zz.yaml'), named('marker'));
  const pods = await sink.until((list) => list.length === 2);
  assert.equal(pods[0]!.spec!.containers[0]!.image, 'web:2.0');
});

test('a folder that is made later, removed and made again is followed', async (t) => {
  const { folder, sink } = await start(t, 'a/b/manifests');
  await mkdir(folder, { recursive: true });
  for (const round of [1, 2, 3]) {
    await mkdir(folder, { recursive: true });
    await writeFile(join(folder, 'web.yaml'), named(`web${round}`));
    await sink.until((pods) => names(pods).includes(`web${round}-edge-1`));
    await rm(join(folder, round === 2 ? '..' : '.'), { recursive: true });
    await sink.until((pods) => pods.length === 0);
  }
});

test('nothing is told after close', async (t) => {
  const { folder, sink, watch } = await start(t);
  await writeFile(join(folder, 'web.yaml'), webManifest);
  watch.close();
  const other = recordingSink();
  const second = watchManifests({
    folder,
    nodeName: 'n',
    sink: other,
    log: makeLogger('silent'),
    clock: systemClock,
  });
  t.after(() => second.close());
  await other.until((pods) => pods.length === 1);
  assert.deepEqual(sink.lists, [[]]);
});
