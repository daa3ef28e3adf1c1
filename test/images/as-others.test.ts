/** One image of several layers, unpacked by us, by umoci and by containerd: the same root file system must come of it. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { namedLayout, tarOf, writeFolder } from '../peers/archive.ts';
import { startCtr } from '../peers/ctr.ts';
import { buildImage } from '../peers/image.ts';
import { openImages, temporaryFolder } from '../peers/image-store.ts';

const skip = (program: string): string | false => {
  if (process.getuid?.() !== 0) return 'needs root';
  const has = (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, program)));
  return has ? false : `needs the package ${program}`;
};
const run = (program: string, ...args: string[]) => execFileSync(program, args, { stdio: 'pipe' });

const name = 'example.org/team/app:1';
const image = buildImage({
  layers: [
    {
      files: [
        { path: 'bin', type: 'directory', mode: 0o755 },
        { path: 'bin/tool', content: 'tool'.repeat(5000), mode: 0o4755 },
        { path: 'bin/same-tool', type: 'link', target: 'bin/tool', mode: 0o4755 },
        { path: 'etc', type: 'directory', mode: 0o750, uid: 10, gid: 20 },
        { path: 'etc/gone', content: 'x' },
        {
          path: 'etc/kept',
          content: 'kept',
          uid: 1000,
          gid: 1001,
          mode: 0o640,
          mtime: '1234567890.123456789',
        },
        { path: 'opaque/old/deep', content: 'x' },
        { path: 'swapped/file', content: 'x' },
        { path: 'gone-dir/a/b', content: 'x' },
        { path: 'dev', type: 'directory' },
        { path: 'dev/null', type: 'char', major: 1, minor: 3, mode: 0o666 },
        { path: 'run/pipe', type: 'fifo', mode: 0o600 },
        { path: 'tmp', type: 'directory', mode: 0o1777 },
        { path: 'setgid', type: 'directory', mode: 0o2775, gid: 50 },
        { path: 'setgid/in', content: 'x' },
      ],
    },
    {
      files: [
        { path: 'etc/.wh.gone' },
        { path: '.wh.gone-dir' },
        { path: 'opaque', type: 'directory', mode: 0o711 },
        { path: 'opaque/.wh..wh..opq' },
        { path: 'opaque/new', content: 'new' },
        { path: '.wh.swapped' },
        { path: 'usr/lib', type: 'symlink', target: '/lib' },
        { path: 'etc/kept', content: 'changed', mode: 0o600 },
      ],
    },
    {
      files: [
        { path: 'swapped', content: 'now a file', mode: 0o444 },
        { path: 'etc', type: 'directory', mode: 0o700 },
        { path: 'bin/tool', content: 'newer', mode: 0o755 },
      ],
    },
  ],
});
const gzipOnly = [{ image, tags: [name] }];

/** One line for all that a file has; times of folders that no entry names are the unpacker's. */
function listing(root: string): string[] {
  const format = '%P|%y|%m|%U:%G|%s|%l|%T@\\n';
  return execFileSync('find', ['.', '-printf', format], { cwd: root, encoding: 'utf8' })
    .trim()
    .split('\n')
    .map((line) => {
      const fields = line.split('|');
      if (fields[1] === 'd') fields[4] = '';
      // Folders that are made for a file, or changed by a later layer, have the time of that moment.
      if (fields[1] === 'd') fields[6] = '';
      return fields.join('|');
    })
    .filter((line) => !line.startsWith('|'))
    .sort();
}

async function ours(t: TestContext, path: string): Promise<string[]> {
  const { images, folder } = await openImages({ after: (fn) => t.after(fn) });
  await images.importImages(path);
  const { layers } = await images.forContainer(name);
  const root = join(folder, 'root');
  mkdirSync(root);
  run('mount', '-t', 'overlay', 'overlay', '-o', `lowerdir=${layers.join(':')}`, root);
  try {
    return listing(root);
  } finally {
    run('umount', root);
  }
}

test('what containerd makes of an image, we make of it', { skip: skip('containerd') }, async (t) => {
  const { folder, ctr } = await startCtr(t);
  const source = join(folder, 'source.tar');
  execFileSync('tee', [source], {
    input: tarOf(namedLayout(gzipOnly, 'io.containerd.image.name')),
    stdio: ['pipe', 'ignore', 'pipe'],
  });
  ctr('images', 'import', source);
  const root = join(folder, 'mounted');
  mkdirSync(root);
  ctr('images', 'mount', name, root);
  try {
    assert.deepEqual(await ours(t, source), listing(root));
  } finally {
    ctr('images', 'unmount', root);
  }
});

test('what umoci makes of an image, we make of it', { skip: skip('umoci') }, async (t) => {
  const folder = temporaryFolder({ after: (fn) => t.after(fn) });
  const source = join(folder, 'layout');
  writeFolder(source, namedLayout(gzipOnly));
  const bundle = join(folder, 'bundle');
  run('umoci', 'unpack', '--image', `${source}:${name}`, bundle);
  assert.deepEqual(await ours(t, source), listing(join(bundle, 'rootfs')));
});
