/** Unpacking: what GNU tar and overlayfs make of the same archive, and what hostile archives cannot do. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { makeUnpackPool, type UnpackPool } from '../../images/unpack/pool.ts';
import type { UnpackLimits } from '../../images/unpack/protocol.ts';
import { mapOf, rebuildArchive } from '../../images/unpack/tar_map.ts';
import { type Clock, systemClock } from '../../runtime/host/clock.ts';
import { type ErrorCode, isError } from '../../runtime/host/errors.ts';
import { getXattr } from '../../runtime/host/syscalls.ts';
import { temporaryFolder } from '../peers/image-store.ts';
import { makeTar, type TarEntry } from '../peers/tar.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

type OpenPool = (limits?: UnpackLimits) => UnpackPool;

/** One thread does a whole layer, or three share the work: the same must come of it. */
function unpacking(name: string, body: (t: TestContext, openPool: OpenPool) => Promise<void>): void {
  for (const [how, spreadFrom] of [
    ['one thread', Number.POSITIVE_INFINITY],
    ['three threads', 0],
  ] as const) {
    test(`${name} (${how})`, { skip }, (t) =>
      body(t, (limits) => {
        const pool = makeUnpackPool({ clock: systemClock, limits, spreadFrom, threads: 1 });
        t.after(pool.close);
        return pool;
      }),
    );
  }
}

async function unpack(pool: UnpackPool, folder: string, data: Buffer, pieceSize = 10_000) {
  const unpacking = await pool.begin(folder, data.length, 'sha256');
  try {
    for (let at = 0; at < data.length; at += pieceSize)
      await unpacking.write(data.subarray(at, at + pieceSize));
    return await unpacking.end();
  } catch (error) {
    await unpacking.abort();
    throw error;
  }
}

/** One line for everything below `folder`: all that `tar` restores. Times of folders only where `times`. */
function listing(folder: string): string[] {
  return execFileSync('find', ['.', '-printf', '%P %y %m %U %G %T@ %s %n %l\n'], {
    cwd: folder,
    encoding: 'utf8',
  })
    .split('\n')
    .map((line) => (/ d \d+ /.test(line) ? line.replace(/ \d+ (\d+) $/, ' - $1 ') : line))
    .sort();
}

async function rebuilt(folder: string): Promise<Buffer> {
  return Buffer.concat(await Array.fromAsync(rebuildArchive(folder, mapOf(folder))));
}

const sha256 = (data: Buffer) => `sha256:${createHash('sha256').update(data).digest('hex')}`;

unpacking('an ordinary tree is unpacked as GNU tar does it, in every compression', async (t, openPool) => {
  const source = join(temporaryFolder(t), 'tree');
  mkdirSync(source);
  const long = 'long-name-'.repeat(12);
  execFileSync(
    'sh',
    [
      '-ec',
      `
    mkdir -m 1777 tmp; mkdir -m 2755 setgid; echo x > setgid/in; mkdir -p a/b/${long}/${long}
    head -c 3000000 /dev/urandom > a/big; : > a/empty; echo text > 'a/ümlaut and space'
    printf x > "$(printf 'a/latin\\351')"
    echo '#!/bin/sh' > a/run; chmod 4755 a/run; ln a/run a/b/run-link; ln -s ../a/run a/b/sym
    ln -s /etc/passwd a/absolute; ln -s nowhere a/dangling; echo deep > a/b/${long}/${long}/file
    mkfifo a/fifo; mknod a/null c 1 3; mknod a/loop b 7 300; chown -R 1234:4321 a/b; chown 70000:80000 a/empty
    chmod 0 a/empty; touch -d '2001-02-03 04:05:06.789012345 UTC' a/big a/b; touch -h -d '1999-01-01 UTC' a/b/sym
    touch -d '1960-01-01 UTC' setgid/in
  `,
    ],
    { cwd: source },
  );
  for (const format of ['gnu', 'pax', 'ustar']) {
    // ustar has no long names and no times before 1970.
    const exclude = format === 'ustar' ? [`--exclude=${long}`, '--exclude=./setgid/in'] : [];
    const tar = execFileSync('tar', ['-C', source, `--format=${format}`, ...exclude, '-cf', '-', '.'], {
      maxBuffer: 1 << 26,
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const expected = join(temporaryFolder(t), 'expected');
    mkdirSync(expected);
    execFileSync('tar', ['-C', expected, '--numeric-owner', '--warning=no-timestamp', '-xpf', '-'], {
      input: tar,
    });
    for (const [name, data] of [
      ['plain', tar],
      ['gzip', gzipSync(tar)],
      ['gzip of two members', Buffer.concat([gzipSync(tar.subarray(0, 5000)), gzipSync(tar.subarray(5000))])],
      ['zstd', zstdCompressSync(tar)],
    ] as const) {
      const folder = join(temporaryFolder(t), 'layer');
      mkdirSync(folder);
      const result = await unpack(openPool(), folder, data);
      assert.deepEqual(listing(folder), listing(expected), `${format} ${name}`);
      execFileSync('cmp', [join(folder, 'a/big'), join(source, 'a/big')]);
      assert.equal(result.digest, sha256(data));
      assert.ok(result.mapped);
      assert.ok((await rebuilt(folder)).equals(tar), 'the archive is built again');
      assert.equal(result.diffId, sha256(tar));
      assert.ok(result.size > 3_000_000 && result.size < 3_100_000, String(result.size));
      assert.equal(
        result.inodes,
        new Set(execFileSync('find', [folder, '-printf', '%i\n'], { encoding: 'utf8' }).trim().split('\n'))
          .size,
      );
    }
  }
});

unpacking('capabilities and user attributes are kept, those of overlayfs are not', async (t, openPool) => {
  const capability = Buffer.from('0000000280ffc3280000000000000000ffffffff', 'hex');
  const folder = temporaryFolder(t);
  await unpack(
    openPool(),
    folder,
    makeTar([
      {
        path: 'bin',
        type: 'directory',
        xattrs: {
          'trusted.overlay.redirect': '/etc',
          'trusted.overlay.opaque': 'y',
          'user.overlay.opaque': 'y',
        },
      },
      {
        path: 'bin/ping',
        content: 'x',
        uid: 5,
        xattrs: {
          'security.capability': capability.subarray(0, 20),
          'user.note': Buffer.from([0xff, 0x3d, 0x0a]),
        },
      },
    ]),
  );
  if (getXattr(join(folder, 'bin/ping'), 'user.note') === undefined)
    return t.skip('no extended attributes here');
  assert.deepEqual(getXattr(join(folder, 'bin/ping'), 'user.note'), Buffer.from([0xff, 0x3d, 0x0a]));
  assert.deepEqual(
    getXattr(join(folder, 'bin/ping'), 'security.capability')?.subarray(0, 12),
    capability.subarray(0, 12),
  );
  for (const name of ['trusted.overlay.redirect', 'trusted.overlay.opaque', 'user.overlay.opaque']) {
    assert.equal(getXattr(join(folder, 'bin'), name), undefined, name);
  }
});

unpacking('whiteouts and opaque folders hide what is below in an overlay', async (t, openPool) => {
  const root = temporaryFolder(t);
  const pool = openPool();
  const layer = async (name: string, entries: TarEntry[]) => {
    mkdirSync(join(root, name));
    await unpack(pool, join(root, name), makeTar(entries));
    return join(root, name);
  };
  const folder = (path: string): TarEntry => ({ path, type: 'directory' });
  const lower = await layer(
    'lower',
    [
      'gone',
      'stays',
      'gone-dir/x',
      'opaque/old',
      'swapped/old',
      'swapped-late/old',
      'swapped-implied/old',
      'file-then',
      'both',
    ].map((path) => ({ path, content: 'old' })),
  );
  const upper = await layer('upper', [
    { path: '.wh.gone' },
    { path: '.wh.gone-dir' },
    folder('opaque'),
    { path: 'opaque/new' },
    { path: 'opaque/.wh..wh..opq' },
    { path: '.wh.swapped' },
    folder('swapped'),
    { path: 'swapped/new' },
    folder('swapped-late'),
    { path: 'swapped-late/new' },
    { path: '.wh.swapped-late' },
    { path: '.wh.swapped-implied' },
    { path: 'swapped-implied/new' },
    { path: '.wh.both' },
    { path: 'both', content: 'new' },
    { path: '.wh..wh.plnk/1234', content: 'AUFS' },
    { path: '.wh..wh.aufs', content: 'AUFS' },
  ]);
  const [merged, work, top] = ['merged', 'work', 'top'].map((name) => {
    mkdirSync(join(root, name));
    return join(root, name);
  }) as [string, string, string];
  execFileSync('mount', [
    '-t',
    'overlay',
    'overlay',
    '-o',
    `lowerdir=${upper}:${lower},upperdir=${top},workdir=${work}`,
    merged,
  ]);
  try {
    const files = readdirSync(merged, { recursive: true, encoding: 'utf8' }).sort();
    assert.deepEqual(files, [
      'both',
      'file-then',
      'opaque',
      'opaque/new',
      'stays',
      'swapped',
      'swapped-implied',
      'swapped-implied/new',
      'swapped-late',
      'swapped-late/new',
      'swapped/new',
    ]);
    assert.equal(readFileSync(join(merged, 'both'), 'utf8'), 'new');
  } finally {
    execFileSync('umount', [merged]);
  }
});

unpacking('later entries replace earlier ones of another kind', async (t, openPool) => {
  const folder = temporaryFolder(t);
  await unpack(
    openPool(),
    folder,
    makeTar([
      { path: 'a', type: 'directory' },
      { path: 'a/x', content: '1' },
      { path: 'a', content: 'now a file', mode: 0o600 },
      { path: 'b', content: 'file' },
      { path: 'b', type: 'directory', mode: 0o700 },
      { path: 'b/y', content: '2' },
      { path: 'c', type: 'directory', mode: 0o700 },
      { path: 'c/kept', content: '3' },
      { path: 'c', type: 'directory', mode: 0o711 },
      { path: 'd', content: 'first' },
      { path: 'd', content: 'second' },
      { path: 'e', type: 'symlink', target: 'd' },
      { path: 'e', content: 'no longer a link' },
      { path: './made/by/us', content: 'x' },
      { path: '/absolute', content: 'x' },
      { path: 'a/../inner', content: 'x' },
      { path: './', type: 'directory', mode: 0o751, uid: 7, gid: 8 },
    ]),
  );
  const mode = (path: string) => (lstatSync(join(folder, path)).mode & 0o7777).toString(8);
  assert.equal(readFileSync(join(folder, 'a'), 'utf8'), 'now a file');
  assert.equal(readFileSync(join(folder, 'b/y'), 'utf8'), '2');
  assert.deepEqual([mode('c'), readdirSync(join(folder, 'c'))], ['711', ['kept']]);
  assert.equal(readFileSync(join(folder, 'd'), 'utf8'), 'second');
  assert.ok(lstatSync(join(folder, 'e')).isFile());
  assert.deepEqual([mode('made'), mode('made/by')], ['755', '755']);
  assert.ok(readdirSync(folder).includes('absolute') && readdirSync(folder).includes('inner'));
  const { uid, gid } = lstatSync(folder);
  assert.deepEqual([mode('.'), uid, gid], ['751', 7, 8]);
});

/** Each tries to touch `victim`, which lies beside the layer's folder, or /etc of the machine. */
const hostile: readonly (readonly [
  name: string,
  entries: (outside: string) => TarEntry[],
  code: ErrorCode | 'ok',
])[] = [
  ['dot-dot', () => [{ path: '../victim/x', content: 'x' }], 'LAYER_UNSAFE'],
  ['dot-dot inside', () => [{ path: 'a/../../victim/x', content: 'x' }], 'LAYER_UNSAFE'],
  ['absolute', (outside) => [{ path: `${outside}/x`, content: 'x' }], 'ok'],
  [
    'absolute symlink',
    (outside) => [
      { path: 'l', type: 'symlink', target: outside },
      { path: 'l/x', content: 'x' },
    ],
    'IMAGE_INVALID',
  ],
  [
    'relative symlink',
    () => [
      { path: 'l', type: 'symlink', target: '../victim' },
      { path: 'l/x', content: 'x' },
    ],
    'IMAGE_INVALID',
  ],
  [
    'links through links',
    () => [
      { path: 'a', type: 'directory' },
      { path: 'a/up', type: 'symlink', target: '..' },
      { path: 'a/b', type: 'symlink', target: 'up/up/up/victim' },
      { path: 'a/b/x', content: 'x' },
    ],
    'IMAGE_INVALID',
  ],
  [
    'file over a symlink',
    (outside) => [
      { path: 'l', type: 'symlink', target: `${outside}/file` },
      { path: 'l', content: 'x' },
    ],
    'ok',
  ],
  [
    'hard link to outside',
    (outside) => [{ path: 'h', type: 'link', target: `${outside}/file` }],
    'IMAGE_INVALID',
  ],
  ['hard link with dot-dot', () => [{ path: 'h', type: 'link', target: '../victim/file' }], 'LAYER_UNSAFE'],
  [
    'hard link through a symlink',
    (outside) => [
      { path: 'l', type: 'symlink', target: outside },
      { path: 'h', type: 'link', target: 'l/file' },
      { path: 'h', content: 'x' },
    ],
    'IMAGE_INVALID',
  ],
  [
    'hard link to a symlink, then written through it',
    (outside) => [
      { path: 'l', type: 'symlink', target: `${outside}/file` },
      { path: 'h', type: 'link', target: 'l' },
      { path: 'h', content: 'x' },
    ],
    'ok',
  ],
  ['whiteout of dot-dot', () => [{ path: 'a/.wh...', content: '' }], 'LAYER_UNSAFE'],
  ['whiteout of dot', () => [{ path: '.wh..', content: '' }], 'LAYER_UNSAFE'],
  ['whiteout of nothing', () => [{ path: '.wh.', content: '' }], 'LAYER_UNSAFE'],
  [
    'whiteout through a symlink',
    (outside) => [{ path: 'l', type: 'symlink', target: outside }, { path: 'l/.wh.file' }],
    'IMAGE_INVALID',
  ],
  [
    'opaque through a symlink',
    (outside) => [{ path: 'l', type: 'symlink', target: outside }, { path: 'l/.wh..wh..opq' }],
    'IMAGE_INVALID',
  ],
  [
    'folder over a symlink',
    (outside) => [
      { path: 'l', type: 'symlink', target: outside },
      { path: 'l', type: 'directory', mode: 0 },
      { path: 'l/x', content: 'x' },
    ],
    'ok',
  ],
  ['the root as a symlink', (outside) => [{ path: '.', type: 'symlink', target: outside }], 'LAYER_UNSAFE'],
  ['the root as a file', () => [{ path: '/', content: 'x' }], 'LAYER_UNSAFE'],
  ['pax path', () => [{ path: 'a', content: 'x', pax: { path: '../victim/x' } }], 'LAYER_UNSAFE'],
  [
    'pax linkpath',
    () => [{ path: 'h', type: 'link', target: 'a', pax: { linkpath: '../victim/file' } }],
    'LAYER_UNSAFE',
  ],
  ['pax path with NUL', () => [{ path: 'a', content: 'x', pax: { path: 'a\0/../victim' } }], 'LAYER_UNSAFE'],
  [
    'a file as a folder',
    () => [
      { path: 'f', content: 'x' },
      { path: 'f/x', content: 'x' },
    ],
    'IMAGE_INVALID',
  ],
  [
    'a link that goes round',
    () => [
      { path: 'l', type: 'symlink', target: 'l' },
      { path: 'l/x', content: 'x' },
    ],
    'IMAGE_INVALID',
  ],
  ['a too long name', () => [{ path: 'n'.repeat(300), content: 'x' }], 'IMAGE_INVALID'],
  ['a negative id', () => [{ path: 'a', pax: { uid: '-1' } }], 'IMAGE_INVALID'],
  ['an id past 32 bits', () => [{ path: 'a', pax: { gid: '4294967295' } }], 'IMAGE_INVALID'],
  [
    'a sparse file of a later form',
    () => [{ path: 'a', pax: { 'GNU.sparse.major': '2' } }],
    'IMAGE_UNSUPPORTED',
  ],
  [
    'a sparse file with pieces past its end',
    () => [{ path: 'a', content: 'xyz', pax: { 'GNU.sparse.map': '4096,3', 'GNU.sparse.size': '4098' } }],
    'IMAGE_INVALID',
  ],
  [
    'a sparse file with a map that is none',
    () => [
      {
        path: 'a',
        content: '9999999999\n'.padEnd(512, '\0'),
        pax: { 'GNU.sparse.major': '1', 'GNU.sparse.minor': '0', 'GNU.sparse.realsize': '5' },
      },
    ],
    'IMAGE_INVALID',
  ],
];

unpacking('no archive reaches outside of its folder', async (t, openPool) => {
  const pool = openPool();
  const root = temporaryFolder(t);
  const outside = join(root, 'victim');
  mkdirSync(outside, { mode: 0o755 });
  writeFileSync(join(outside, 'file'), 'untouched');
  const before = listing(outside);
  const machine = readdirSync('/').sort();
  for (const [name, entries, code] of hostile) {
    const folder = mkdtempSync(join(root, 'layer-'));
    const run = unpack(pool, folder, makeTar(entries(outside)));
    if (code === 'ok') await run;
    else await assert.rejects(run, (error) => isError(error, code), name);
    assert.deepEqual(listing(outside), before, name);
    assert.equal(readFileSync(join(outside, 'file'), 'utf8'), 'untouched', name);
  }
  assert.deepEqual(readdirSync('/').sort(), machine);
  assert.equal(process.cwd(), readlinkSync('/proc/self/cwd'));
});

unpacking('two layers unpacked at once by one thread stay in their own folders', async (t, openPool) => {
  const pool = openPool();
  const root = temporaryFolder(t);
  await Promise.all(
    ['a', 'b', 'c', 'd'].map(async (name) => {
      mkdirSync(join(root, name));
      const entries = Array.from(
        { length: 300 },
        (_, at): TarEntry => ({ path: `${name}${at}`, content: name.repeat(3000) }),
      );
      await unpack(pool, join(root, name), gzipSync(makeTar(entries)), 1000);
    }),
  );
  for (const name of ['a', 'b', 'c', 'd']) {
    const files = readdirSync(join(root, name));
    assert.equal(files.length, 300);
    assert.ok(files.every((file) => file.startsWith(name)));
  }
  assert.deepEqual(
    readdirSync(root)
      .filter((name) => !name.endsWith('.map'))
      .sort(),
    ['a', 'b', 'c', 'd'],
  );
});

unpacking(
  'limits, broken archives and broken compression end in an error that says so',
  async (t, openPool) => {
    const pool = openPool({ entries: 10, bytes: 100_000 });
    const files = (count: number): TarEntry[] =>
      Array.from({ length: count }, (_, at) => ({ path: `f${at}` }));
    const good = makeTar([{ path: 'a', content: 'x'.repeat(20_000) }]);
    const cases: readonly (readonly [string, Buffer, ErrorCode, RegExp])[] = [
      ['entries', makeTar(files(11)), 'LAYER_UNSAFE', /more than 10 entries/],
      ['bomb', gzipSync(Buffer.alloc(50_000_000)), 'LAYER_UNSAFE', /more than 100000 bytes/],
      ['cut archive', good.subarray(0, 5000), 'IMAGE_INVALID', /not a tar archive/],
      ['cut gzip', gzipSync(good).subarray(0, 60), 'IMAGE_INVALID', /decompressed/],
      ['cut zstd', zstdCompressSync(good).subarray(0, 40), 'IMAGE_INVALID', /./],
      ['no archive', Buffer.alloc(2000, 'no archive '), 'IMAGE_INVALID', /not a tar archive/],
      ['broken pax', makeTar([{ path: 'a', pax: { x: 'y' } }]).fill('z', 512, 520), 'IMAGE_INVALID', /pax/],
    ];
    for (const [name, data, code, message] of cases) {
      const run = unpack(pool, temporaryFolder(t), data);
      await assert.rejects(run, (error) => isError(error, code) && message.test(error.message), name);
    }
    await unpack(
      pool,
      temporaryFolder(t),
      Buffer.concat([makeTar(files(10)), Buffer.from('rubbish behind the end')]),
    );
    await unpack(pool, temporaryFolder(t), Buffer.alloc(0));
  },
);

unpacking('an abort ends the writing', async (t, openPool) => {
  const pool = openPool();
  const folder = temporaryFolder(t);
  const data = makeTar(
    Array.from({ length: 2000 }, (_, at): TarEntry => ({ path: `f${at}`, content: 'x'.repeat(2000) })),
  );
  const unpacking = await pool.begin(folder, data.length, 'sha256');
  await unpacking.write(data.subarray(0, data.length - 5000));
  await unpacking.abort();
  const count = readdirSync(folder).length;
  assert.ok(count < 2000);
  await assert.rejects(unpacking.end(), { code: 'ABORTED' });
  assert.equal(readdirSync(folder).length, count);
});

unpacking('sparse files in every form of GNU tar', async (t, openPool) => {
  const source = join(temporaryFolder(t), 'tree');
  mkdirSync(source);
  // Pieces at odd places: more than fit into one header, and a hole at the end.
  execFileSync(
    'sh',
    [
      '-ec',
      `for i in $(seq 1 60); do printf "piece $i" | dd of=many bs=1 seek=$((i * 70000)) conv=notrunc status=none; done
       truncate -s 9000000 many; truncate -s 5000000 hole; printf end | dd of=late bs=1 seek=3000000 status=none`,
    ],
    { cwd: source },
  );
  for (const form of [
    ['--format=gnu'],
    ['0.0', '0.1', '1.0'].map((v) => ['--format=pax', `--sparse-version=${v}`]),
  ]
    .flat()
    .map((options) => [options].flat())) {
    const tar = execFileSync('tar', ['-C', source, '--sparse', ...form, '-cf', '-', '.'], {
      maxBuffer: 1 << 26,
    });
    assert.ok(tar.length < 2_000_000, 'it is sparse');
    const folder = join(temporaryFolder(t), 'layer');
    mkdirSync(folder);
    const result = await unpack(openPool(), folder, tar);
    execFileSync('diff', ['-r', source, folder]);
    assert.ok(lstatSync(join(folder, 'hole')).blocks < 100);
    assert.ok(result.mapped && (await rebuilt(folder)).equals(tar), form.join(' '));
  }
});

unpacking(
  'a layer that replaces its own files has no map; other oddities do not matter',
  async (t, openPool) => {
    const cases: readonly (readonly [TarEntry[], boolean])[] = [
      [
        [
          { path: 'a', content: '1' },
          { path: 'a', content: '2' },
        ],
        false,
      ],
      [
        [
          { path: 'd/a', content: '1' },
          { path: 'd', content: '2' },
        ],
        false,
      ],
      [
        [
          { path: 'l', type: 'symlink', target: 'd' },
          { path: 'd', type: 'directory' },
          { path: 'l/f', content: '1' },
        ],
        false,
      ],
      [
        [
          { path: '.wh.x', content: 'not empty' },
          { path: '.wh..wh.plnk/1', content: 'AUFS' },
          { path: 'a', content: '1' },
        ],
        true,
      ],
      [
        [
          { path: 'l', type: 'symlink', target: 'd' },
          { path: 'l', type: 'directory' },
          { path: 'l/f', content: '1' },
        ],
        true,
      ],
      [
        [
          { path: 'a', content: '1' },
          { path: 'h', type: 'link', target: 'a' },
          { path: 'x/../a2', content: 'x' },
        ],
        true,
      ],
    ];
    for (const [entries, mapped] of cases) {
      const folder = join(temporaryFolder(t), 'layer');
      mkdirSync(folder);
      const tar = Buffer.concat([makeTar(entries), Buffer.from('behind the end')]);
      const result = await unpack(openPool(), folder, tar);
      assert.equal(result.mapped, mapped, JSON.stringify(entries));
      if (mapped) assert.ok((await rebuilt(folder)).equals(tar), JSON.stringify(entries));
    }
  },
);

test('a damaged layer or map is told, and nothing outside is read', { skip }, async (t) => {
  const pool = makeUnpackPool({ clock: systemClock });
  t.after(pool.close);
  const tar = makeTar([
    { path: 'd/f', content: 'content' },
    { path: 'g', content: 'x' },
  ]);
  const damaged = async (damage: (folder: string) => void, why: RegExp) => {
    const folder = join(temporaryFolder(t), 'layer');
    mkdirSync(folder);
    await unpack(pool, folder, tar);
    damage(folder);
    await assert.rejects(
      rebuilt(folder),
      (error) => isError(error, 'LAYER_DAMAGED') && why.test(error.message),
    );
  };
  await damaged((folder) => rmSync(join(folder, 'g')), /"g" cannot be read: ENOENT/);
  await damaged((folder) => truncateSync(join(folder, 'd/f'), 3), /"d\/f" is too short/);
  await damaged((folder) => {
    rmSync(join(folder, 'g'));
    symlinkSync('/etc/passwd', join(folder, 'g'));
  }, /"g" cannot be read: ELOOP/);
  await damaged((folder) => {
    renameSync(join(folder, 'd'), join(folder, 'away'));
    symlinkSync(join(folder, 'away'), join(folder, 'd'));
  }, /the folder of "d\/f" is not what it was/);
  await damaged((folder) => truncateSync(mapOf(folder), 20), /map is cut off/);
  await damaged((folder) => writeFileSync(mapOf(folder), Buffer.alloc(100, 7)), /map/);
  await damaged((folder) => rmSync(mapOf(folder)), /map cannot be read/);
});

unpacking('entries without content have none, whatever their size says', async (t, openPool) => {
  const folder = temporaryFolder(t);
  await unpack(
    openPool(),
    folder,
    makeTar([
      { path: 'a', content: 'x' },
      { path: 'link', type: 'link', target: 'a', claimedSize: 512 },
      { path: 'after-link', content: 'x' },
      { path: 'sym', type: 'symlink', target: 'a', pax: { size: '1024' } },
      { path: 'after-sym', content: 'x' },
      { path: 'old-folder/', claimedSize: 0 },
    ]),
  );
  assert.deepEqual(readdirSync(folder).sort(), ['a', 'after-link', 'after-sym', 'link', 'old-folder', 'sym']);
  assert.ok(lstatSync(join(folder, 'old-folder')).isDirectory());
});

test('a closed pool leaves no timer and starts no thread', { skip }, async (t) => {
  const timers = new Set<object>();
  const clock: Clock = {
    ...systemClock,
    after(ms, callback) {
      const timer = {};
      timers.add(timer);
      const cancel = systemClock.after(ms, callback);
      return () => {
        timers.delete(timer);
        cancel();
      };
    },
  };
  const pool = makeUnpackPool({ clock });
  const unpacking = await pool.begin(temporaryFolder(t), 1000, 'sha256');
  const late = assert.rejects(pool.begin(temporaryFolder(t), 1000, 'sha256'), { code: 'ABORTED' });
  await pool.close();
  await assert.rejects(unpacking.end(), { code: 'ABORTED' });
  await late;
  assert.equal(timers.size, 0);
});
