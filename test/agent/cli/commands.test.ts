/** The command line as a child process, against the real control server with an image service of the test. */
import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { closeSync, mkdirSync, mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { type TestContext, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { imageVerbs } from '../../../agent/control/images.ts';
import { startControl } from '../../../agent/control/server.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { lockFile } from '../../../runtime/host/database.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { app, busybox, digest, fakeImages, layer, nameless, untilAborted } from '../control/fake-images.ts';
import { makeEmulator } from './emulator.ts';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../../..');
const cli = [process.execPath, '--disable-warning=ExperimentalWarning', join(root, 'agent/cli.ts')];

interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

interface Place {
  readonly folder: string;
  readonly runDir: string;
  readonly stateDir: string;
  start(verb: string, ...args: string[]): ChildProcess;
  run(verb: string, ...args: string[]): Promise<Ended>;
  serve(): Promise<ReturnType<typeof fakeImages>>;
}

function ended(child: ChildProcess): Promise<Ended> {
  const texts = { stdout: '', stderr: '' };
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.setEncoding('utf8').on('data', (text: string) => (texts[name] += text));
  }
  return once(child, 'close').then(([code, signal]) => ({ code, signal, ...texts }));
}

function place(t: TestContext): Place {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  const runDir = join(folder, 'run');
  const stateDir = join(folder, 'state');
  mkdirSync(runDir);
  writeFileSync(
    join(folder, 'config.yaml'),
    `apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nkeelson: {runDir: ${runDir}, stateDir: ${stateDir}}\n`,
  );
  const start = (verb: string, ...args: string[]) => {
    const [node, ...rest] = [...cli, verb, '--config', join(folder, 'config.yaml'), ...args];
    const child = spawn(node!, rest, { cwd: folder, stdio: ['pipe', 'pipe', 'pipe'] });
    t.after(() => void child.kill('SIGKILL'));
    return child;
  };
  return {
    folder,
    runDir,
    stateDir,
    start,
    run(verb, ...args) {
      const child = start(verb, ...args);
      child.stdin!.end();
      return ended(child);
    },
    async serve() {
      const images = fakeImages();
      const server = await startControl({
        runDir,
        handlers: imageVerbs({ images }),
        log: makeLogger('silent'),
        clock: systemClock,
      });
      t.after(() => server.close());
      return images;
    },
  };
}

/** Runs a command in a pseudo-terminal of that size; what it writes, and a way to type. */
function onTerminal(
  t: TestContext,
  { folder }: Place,
  size: { columns: number; rows: number },
  args: string[],
) {
  const command = [...cli, args[0]!, '--config', join(folder, 'config.yaml'), ...args.slice(1)].join(' ');
  const child = spawn(
    'script',
    ['-qefc', `stty cols ${size.columns} rows ${size.rows}; exec ${command}`, '/dev/null'],
    { cwd: folder, stdio: ['pipe', 'pipe', 'inherit'], env: { ...process.env, TERM: 'xterm' } },
  );
  t.after(() => void child.kill('SIGKILL'));
  return { child, end: ended(child) };
}

const lastLine = (text: string) => text.trimEnd().split('\n').at(-1)!;

test('images: a table, a filter, ids, one JSON document', async (t) => {
  const here = place(t);
  await here.serve();
  const table = await here.run('images');
  assert.equal(table.code, 0, table.stderr);
  assert.equal(table.stderr, '');
  assert.equal(table.stdout.split('\n').length, 6);
  assert.match(table.stdout, /^REPOSITORY +TAG +IMAGE ID +SIZE +PINNED\n/);
  assert.match(
    (await here.run('images', '--digests', 'busybox')).stdout,
    /1\.36 +111111111111 +aaaaaaaaaaaa/,
  );
  assert.equal((await here.run('images', '-q', 'app')).stdout, `${app.id.slice(7, 19)}\n`);
  assert.deepEqual(JSON.parse((await here.run('images', '--json')).stdout), {
    images: [busybox, app, nameless],
  });
  assert.deepEqual(JSON.parse((await here.run('images', '--json', 'nothing')).stdout), { images: [] });
});

test('pull: plain lines and the id on pipes, JSON lines, quiet', async (t) => {
  const here = place(t);
  const images = await here.serve();
  const steps = [
    layer('1'),
    layer('1', { phase: 'downloading' }),
    layer('1', { phase: 'done', bytes: 1_000_000 }),
    layer('2', { phase: 'present' }),
  ];
  images.script = async (tell) => {
    steps.forEach(tell);
    return busybox.id;
  };
  const plain = await here.run('pull', 'busybox:1.36');
  assert.equal(plain.code, 0, plain.stderr);
  assert.equal(plain.stdout, `${busybox.id}\n`);
  assert.equal(
    plain.stderr,
    `111111111111 waiting (1.0 MB)
111111111111 downloading (1.0 MB)
111111111111 done (1.0 MB)
222222222222 present (1.0 MB)
busybox:1.36: 2 of 2 layers, 2.0 MB
`,
  );
  const json = await here.run('pull', '--json', 'busybox:1.36');
  assert.deepEqual(
    json.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line)),
    [...steps, busybox],
  );
  assert.equal(json.stderr, '');
  const quiet = await here.run('pull', '-q', 'busybox:1.36');
  assert.deepEqual([quiet.stdout, quiet.stderr], [`${busybox.id}\n`, '']);
});

test('pull: a failure is the last line, with its cause and hint, and steers no terminal', async (t) => {
  const here = place(t);
  const images = await here.serve();
  images.script = async (tell) => {
    tell(layer('1'));
    throw new KeelsonError('IMAGE_PULL_DENIED', 'registry says \x1b[2Jno\nnever', {
      hint: 'give credentials',
      cause: new Error('401'),
    });
  };
  const { code, stdout, stderr } = await here.run('pull', 'busybox');
  assert.equal(code, 1);
  assert.equal(stdout, '');
  assert.equal(lastLine(stderr), 'keelson: registry says ?[2Jno never: 401 (give credentials)');
});

test('pull: credentials reach the image service, a password in the arguments is warned of', async (t) => {
  const here = place(t);
  const images = await here.serve();
  const open = await here.run('pull', '--creds', 'me:hunter2', 'busybox');
  assert.match(open.stderr, /^warning: a password on the command line/);
  assert.ok(!open.stderr.includes('hunter2'));
  const child = here.start('pull', '--creds-stdin', 'busybox');
  child.stdin!.end('you:swordfish\n');
  assert.equal((await ended(child)).code, 0);
  const asked = await here.run('pull', '--creds', 'me', 'busybox');
  assert.equal(asked.code, 2);
  assert.match(lastLine(asked.stderr), /use --creds-stdin/);
  assert.deepEqual(images.calls, [
    ['pull', 'busybox', [{ username: 'me', password: 'hunter2' }]],
    ['pull', 'busybox', [{ username: 'you', password: 'swordfish' }]],
  ]);
});

test('pull: a password typed on a terminal is not shown', async (t) => {
  const here = place(t);
  const images = await here.serve();
  const { child, end } = onTerminal(t, here, { columns: 80, rows: 24 }, ['pull', '--creds', 'me', 'busybox']);
  let shown = '';
  child.stdout!.on('data', (text) => {
    const before = shown.includes('Password of me: ');
    shown += text;
    if (!before && shown.includes('Password of me: ')) child.stdin!.write('hunterX\x7f2\r');
  });
  const { code } = await end;
  assert.equal(code, 0, shown);
  assert.ok(!shown.includes('hunter'), shown);
  assert.deepEqual(images.calls, [['pull', 'busybox', [{ username: 'me', password: 'hunter2' }]]]);
});

for (const [count, rows] of [
  [4, 24],
  [12, 8],
] as const) {
  test(`pull: bars of ${count} layers on a terminal of ${rows} rows`, async (t) => {
    const here = place(t);
    const images = await here.serve();
    const digits = [...'0123456789abcdef'].slice(0, count);
    images.script = async (tell) => {
      for (const digit of digits) tell(layer(digit));
      for (let bytes = 0; bytes <= 1_000_000; bytes += 50_000) {
        for (const digit of digits) tell(layer(digit, { phase: 'downloading', bytes, bytesPerSecond: 1e6 }));
        await new Promise((done) => setTimeout(done, 15)); // So that there is more than one picture.
      }
      for (const digit of digits) tell(layer(digit, { phase: 'done', bytes: 1_000_000 }));
      return busybox.id;
    };
    const { child, end } = onTerminal(t, here, { columns: 72, rows }, ['pull', 'busybox']);
    const shown = makeEmulator(72, rows);
    child.stdout!.setEncoding('utf8').on('data', (text: string) => shown.write(text));
    assert.equal((await end).code, 0, shown.lines().join('\n'));
    const lines = shown.lines();
    const visible = Math.min(count, rows - 2);
    assert.deepEqual(
      lines.slice(0, visible).map((line) => line.replace(/ {3,}/, '  ')),
      digits.slice(0, visible).map((digit) => `${digit.repeat(12)}  done  1.0 MB`),
    );
    const hidden = count > visible ? `, ${count - visible} not shown` : '';
    assert.deepEqual(lines.slice(visible), [
      `busybox: ${count} of ${count} layers, ${count}.0 MB of ${count}.0 MB${hidden}`,
      busybox.id,
    ]);
    assert.equal(shown.wrapped, 0);
    assert.equal(shown.cursorShown, true);
  });
}

test('pull: an interrupt aborts it in the agent, and the command ends by it', async (t) => {
  const here = place(t);
  const images = await here.serve();
  const aborted = Promise.withResolvers<unknown>();
  images.script = (tell, signal) => {
    tell(layer('1'));
    const end = untilAborted(signal);
    end.catch(aborted.resolve);
    return end;
  };
  const child = here.start('pull', 'busybox');
  child.stderr!.once('data', () => child.kill('SIGINT'));
  const { code, signal, stderr } = await ended(child);
  assert.deepEqual([code, signal], [null, 'SIGINT']);
  assert.equal(lastLine(stderr), 'keelson: interrupted by SIGINT');
  assert.ok(isError(await aborted.promise, 'ABORTED'));
});

test('pull: Ctrl-C on a terminal ends it, the cursor is back', async (t) => {
  const here = place(t);
  const images = await here.serve();
  images.script = (tell, signal) => {
    tell(layer('1', { phase: 'downloading', bytes: 500_000 }));
    return untilAborted(signal);
  };
  const { child, end } = onTerminal(t, here, { columns: 80, rows: 24 }, ['pull', 'busybox']);
  const shown = makeEmulator(200, 24);
  let typed = false;
  child.stdout!.setEncoding('utf8').on('data', (text: string) => {
    shown.write(text.replaceAll('^C', ''));
    if (typed || !shown.lines().join().includes('downloading')) return;
    typed = true;
    child.stdin!.write('\x03');
  });
  assert.equal((await end).code, 130);
  assert.equal(shown.cursorShown, true);
  assert.equal(shown.lines().at(-1), 'keelson: interrupted by SIGINT');
});

test('pull: whoever stops reading ends it', async (t) => {
  const here = place(t);
  const images = await here.serve();
  images.script = async (tell, signal) => {
    const digits = '123456789';
    for (let at = 0; !signal.aborted; at++) {
      tell(layer(digits[at % 9]!, { phase: at % 18 < 9 ? 'downloading' : 'verifying' }));
      await new Promise((next) => setImmediate(next));
    }
    return untilAborted(signal);
  };
  const child = here.start('pull', '--json', 'busybox');
  child.stdout!.once('data', () => child.stdout!.destroy());
  const { code, stderr } = await ended(child);
  assert.equal(code, 1);
  assert.equal(stderr, 'keelson: nobody reads the output any more\n');
});

test('rm: removes what it can, says what it cannot', async (t) => {
  const here = place(t);
  await here.serve();
  const used = await here.run('rm', 'registry.example:5000/team/app:v2');
  assert.equal(used.code, 1);
  assert.match(lastLine(used.stderr), /^keelson: image .* is used by container c1 \(remove its pod first\)$/);
  const mixed = await here.run('rm', '--json', 'abcc', 'aaaa', 'none:1');
  assert.equal(mixed.code, 1);
  const { removed, failed } = JSON.parse(mixed.stdout);
  assert.deepEqual(removed, [
    { image: 'aaaa', id: busybox.id, names: [...busybox.repoTags, ...busybox.repoDigests] },
  ]);
  assert.deepEqual(
    failed.map(({ image, code }: { image: string; code: string }) => [image, code]),
    [
      ['abcc', 'FAILED_PRECONDITION'],
      ['none:1', 'IMAGE_NOT_PRESENT'],
    ],
  );
  assert.equal(lastLine(mixed.stderr), 'keelson: 2 of 3 images stay');
  const good = await here.run('rm', nameless.id);
  assert.deepEqual([good.code, good.stdout], [0, `removed ${nameless.id} (${nameless.id})\n`]);
});

test('import and export: paths are made absolute, names and ids are told', async (t) => {
  const here = place(t);
  const images = await here.serve();
  const imported = await here.run('import', '--pin', 'a.tar', '/b');
  assert.equal(imported.code, 0, imported.stderr);
  assert.equal(imported.stdout, `${busybox.id} ${busybox.repoTags.join(' ')}\n`.repeat(2));
  assert.match(imported.stderr, /^555555555555 verifying \(1\.0 MB\)\n555555555555 done/);
  const json = await here.run('import', '--json', 'a.tar');
  assert.deepEqual(JSON.parse(json.stdout), { images: [busybox] });
  const exported = await here.run('export', '-o', 'x/y', '--format', 'oci-layout', '--json', 'aaaa');
  assert.deepEqual(JSON.parse(exported.stdout), {
    path: join(here.folder, 'x/y'),
    format: 'oci-layout',
    images: [busybox.id],
  });
  assert.match(
    (await here.run('export', '-o', 'z.tar', 'abcc')).stdout,
    /^wrote sha256:abc\w+ to .*z\.tar \(oci-archive\)$/m,
  );
  assert.deepEqual(images.calls, [
    ['import', join(here.folder, 'a.tar'), true],
    ['import', '/b', true],
    ['import', join(here.folder, 'a.tar'), false],
    ['export', [busybox.id], join(here.folder, 'x/y'), 'oci-layout'],
    ['export', [app.id], join(here.folder, 'z.tar'), 'oci-archive'],
  ]);
});

test('verify: a line for each layer, 1 when one stays damaged', async (t) => {
  const here = place(t);
  const images = await here.serve();
  const good = { diffId: digest('1'), images: ['busybox'], state: 'good', message: '' } as const;
  images.reports = [good, { ...good, diffId: digest('2'), state: 'repaired', message: 'a file differed' }];
  const fine = await here.run('verify', '--repair');
  assert.equal(fine.code, 0, fine.stderr);
  assert.equal(
    fine.stdout,
    `good     ${digest('1')} busybox
repaired ${digest('2')} busybox: a file differed
2 layers: 1 good, 1 repaired, 0 damaged
`,
  );
  images.reports = [good, { diffId: digest('3'), images: [], state: 'damaged', message: 'gone' }];
  const bad = await here.run('verify');
  assert.equal(bad.code, 1);
  assert.match(bad.stdout, /^damaged {2}sha256:3+: gone$/m);
  assert.match(lastLine(bad.stderr), /^keelson: 1 of 2 layers are damaged \('keelson verify --repair'/);
  const json = await here.run('verify', '--json');
  assert.equal(json.code, 1);
  assert.deepEqual(JSON.parse(json.stdout), { layers: images.reports });
  assert.deepEqual(images.calls, [
    ['verify', true],
    ['verify', false],
    ['verify', false],
  ]);
});

test('usage: help for each verb, 2 for what is wrong', async () => {
  const run = (...args: string[]) =>
    ended(spawn(cli[0]!, [...cli.slice(1), ...args], { stdio: ['ignore', 'pipe', 'pipe'] }));
  const overview = await run('help');
  assert.equal(overview.code, 0);
  for (const verb of ['agent', 'config', 'images', 'pull', 'rm', 'import', 'export', 'verify']) {
    assert.match(overview.stdout, new RegExp(`^  keelson ${verb} `, 'm'));
    const [one, two] = await Promise.all([run('help', verb), run(verb, '--help')]);
    assert.equal(one.code, 0);
    assert.match(one.stdout, new RegExp(`^keelson ${verb} `));
    assert.equal(two.stdout, one.stdout);
  }
  for (const [args, why] of [
    [['frobnicate'], /unknown command frobnicate/],
    [['constructor'], /unknown command/],
    [['help', 'frobnicate'], /unknown command/],
    [['pull'], /one IMAGE is expected \(see 'keelson help pull'\)/],
    [['pull', 'a', 'b'], /one IMAGE/],
    [['pull', '--frob', 'a'], /--frob/],
    [['rm'], /IMAGE is missing/],
    [['import'], /FILE or DIR is missing/],
    [['export', 'a'], /-o PATH is missing/],
    [['export', '-o', '-', 'a'], /not to standard output/],
    [['export', '-o', 'x', '--format', 'zip', 'a'], /oci-layout/],
    [['verify', 'a'], /takes no names/],
    [['images', 'a', 'b'], /one FILTER/],
  ] as const) {
    const { code, stdout, stderr } = await run(...args);
    assert.equal(code, 2, args.join(' '));
    assert.equal(stdout, '');
    assert.match(lastLine(stderr), /^keelson: /);
    assert.match(lastLine(stderr), why);
  }
});

test('without an agent the command opens the store itself, and says so', async (t) => {
  const here = place(t);
  const { code, stdout, stderr } = await here.run('images', '--json');
  assert.equal(code, 0, stderr);
  assert.deepEqual(JSON.parse(stdout), { images: [] });
  assert.equal(
    stderr,
    `no agent runs: working on ${here.stateDir} directly; an agent that starts waits for this to end\n`,
  );
  const gone = await here.run('rm', 'none:1');
  assert.equal(gone.code, 1);
  assert.match(lastLine(gone.stderr), /not present on this node/);
  // Nothing holds the lock any more.
  const lock = lockFile(join(here.stateDir, 'state.db.lock'));
  assert.notEqual(lock, undefined);
  closeSync(lock!);
});

test('an agent that is just starting is waited for', async (t) => {
  const here = place(t);
  mkdirSync(here.stateDir);
  const lock = lockFile(join(here.stateDir, 'state.db.lock'))!;
  t.after(() => closeSync(lock));
  const child = here.start('images', '--json');
  const end = ended(child);
  // It waits once it watches a folder.
  const descriptors = `/proc/${child.pid}/fd`;
  const watches = () =>
    readdirSync(descriptors).some((name) => {
      try {
        return readlinkSync(join(descriptors, name)) === 'anon_inode:inotify';
      } catch {
        return false;
      }
    });
  while (!watches()) await new Promise((next) => setTimeout(next, 20));
  await here.serve();
  const { code, stdout, stderr } = await end;
  assert.equal(code, 0, stderr);
  assert.equal(JSON.parse(stdout).images.length, 3);
  assert.equal(stderr, '');
});

test('a configuration that cannot be read is said', async (t) => {
  const here = place(t);
  const { code, stderr } = await here.run('images', '--config', join(here.folder, 'none.yaml'));
  assert.equal(code, 1);
  assert.match(lastLine(stderr), /^keelson: cannot read the configuration file .*none\.yaml/);
});
