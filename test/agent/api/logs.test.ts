import assert from 'node:assert/strict';
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { findTail } from '../../../agent/api/log-file.ts';
import { makeLogFormatter, parseLogLine, printTimestamp } from '../../../agent/api/log-line.ts';
import type { LogOptions } from '../../../agent/api/log-options.ts';
import { streamLog } from '../../../agent/api/logs.ts';
import { isError } from '../../../runtime/host/errors.ts';

const plain: LogOptions = { follow: false, previous: false, timestamps: false, stream: 'all' };
const start = Date.parse('2026-10-06T00:00:00Z');
/** A line of the log, `second` seconds after the start. */
const line = (content: string, second = 0, stream = 'stdout', tag = 'F') =>
  `${new Date(start + second * 1000).toISOString().slice(0, 19)}.123456789+00:00 ${stream} ${tag} ${content}\n`;

function lab(t: TestContext) {
  const root = mkdtempSync(join(tmpdir(), 'keelson-test-logs-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const logPath = join(root, '0.log');
  const listeners = new Set<() => void>();
  let running = true;
  const log = {
    logPath,
    running: () => running,
    onExit: (listener: () => void) => {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
  const exit = () => {
    running = false;
    for (const listener of listeners) listener();
  };
  const abort = new AbortController();
  const begin = (options: Partial<LogOptions> = {}, write?: (chunk: Buffer) => Promise<void>) => {
    let output = '';
    let notify = () => {};
    const done = streamLog({
      log,
      options: { ...plain, ...options },
      signal: abort.signal,
      write:
        write ??
        (async (chunk) => {
          output += chunk;
          notify();
        }),
    });
    done.catch(() => {});
    return {
      done,
      output: () => output,
      /** Until all of `wanted` came. */
      async until(wanted: string) {
        while (!output.includes(wanted)) {
          await Promise.race([
            new Promise<void>((resolve) => {
              notify = resolve;
            }),
            done.then(() => assert.fail(`ended with ${JSON.stringify(output)}`)),
          ]);
        }
      },
    };
  };
  const read = async (options: Partial<LogOptions> = {}) => {
    const reading = begin(options);
    await reading.done;
    return reading.output();
  };
  return { root, logPath, log, exit, abort, listeners, begin, read };
}

test('lines, pieces, empty lines, both streams; what is no line is passed over', async (t) => {
  const { logPath, read } = lab(t);
  writeFileSync(
    logPath,
    line('one') +
      line('two ', 1, 'stderr', 'P') +
      line('halves', 1, 'stderr') +
      'rubbish\n' +
      '\0'.repeat(100) +
      '\n' +
      line('') +
      line('  kept  '),
  );
  assert.equal(await read(), 'one\ntwo halves\n\n  kept  \n');
  assert.equal(await read({ stream: 'stderr' }), 'two halves\n');
  assert.equal(await read({ stream: 'stdout' }), 'one\n\n  kept  \n');
});

test('timestamps have nine digits, are in UTC, and stand before whole lines only', async (t) => {
  const { logPath, read } = lab(t);
  writeFileSync(logPath, line('a', 0, 'stdout', 'P') + line('b', 1) + line('c', 2));
  assert.equal(
    await read({ timestamps: true }),
    '2026-10-06T00:00:00.123456789Z ab\n2026-10-06T00:00:02.123456789Z c\n',
  );
  assert.equal(printTimestamp('2026-10-06T00:00:00Z'), '2026-10-06T00:00:00.000000000Z');
  assert.equal(printTimestamp('2026-10-06T00:00:00.5+02:00'), '2026-10-06T00:00:00.500000000+02:00');
});

test('since, limitBytes, and both with timestamps', async (t) => {
  const { logPath, read } = lab(t);
  writeFileSync(logPath, line('old', 0) + line('edge', 10) + line('new', 20));
  assert.equal(await read({ since: start + 10_123 }), 'edge\nnew\n');
  assert.equal(await read({ since: start + 10_124 }), 'new\n');
  assert.equal(await read({ limitBytes: 6 }), 'old\ned');
  assert.equal(await read({ limitBytes: 4 }), 'old\n');
  assert.equal(await read({ limitBytes: 10, timestamps: true }), '2026-10-06');
});

test('tail: every count, over block borders, with pieces, against a plain count', async (t) => {
  const { logPath } = lab(t);
  let text = '';
  const logical: string[] = [];
  for (let index = 0; index < 60; index++) {
    const pieces = index % 7 === 0 ? ['x'.repeat(index), 'y'] : [];
    for (const piece of pieces) text += line(piece, index, 'stdout', 'P');
    text += line(`end ${index}`, index);
    if (index % 11 === 0) text += 'no log line\n';
    logical.push(`${pieces.join('')}end ${index}\n`);
  }
  writeFileSync(logPath, text);
  const handle = await open(logPath);
  t.after(() => handle.close());
  for (const blockSize of [1, 2, 7, 64, 100, 4096, 65_536]) {
    for (const count of [0, 1, 2, 3, 10, 59, 60, 61, 1000]) {
      const at = await findTail(handle, text.length, count, blockSize);
      const formatter = makeLogFormatter(plain);
      const out: Buffer[] = [];
      for (const one of text.slice(at).split('\n').slice(0, -1)) {
        formatter.line(Buffer.from(one), 0, one.length, out);
      }
      const wanted = count === 0 ? '' : logical.slice(-count).join('');
      assert.equal(Buffer.concat(out).toString(), wanted, `block ${blockSize}, count ${count}`);
    }
  }
});

test('tail of an empty log, of half a line, and of a file without line ends', async (t) => {
  const { logPath, read } = lab(t);
  writeFileSync(logPath, '');
  assert.equal(await read({ tailLines: 5 }), '');
  writeFileSync(logPath, line('a') + line('b').slice(0, -1));
  assert.equal(await read({ tailLines: 1 }), 'b\n');
  writeFileSync(logPath, '\0'.repeat(3_000_000) + line('x'));
  assert.equal(await read({ tailLines: 1 }), '');
  appendFileSync(logPath, line('y'));
  assert.equal(await read({ tailLines: 1 }), 'y\n');
  assert.equal(await read(), 'y\n');
});

test('a large log comes whole and in order, one piece of memory at a time', async (t) => {
  const { logPath, begin } = lab(t);
  const lines = Array.from({ length: 50_000 }, (_, index) => `line ${index} ${'z'.repeat(index % 97)}`);
  writeFileSync(logPath, lines.map((content) => line(content)).join(''));
  const chunks: Buffer[] = [];
  let inside = 0;
  await begin({}, async (chunk) => {
    assert.equal(inside++, 0, 'nothing is read on while the reader is busy');
    assert.ok(chunk.length < 200_000);
    await new Promise((resolve) => setImmediate(resolve));
    chunks.push(chunk);
    inside--;
  }).done;
  assert.equal(Buffer.concat(chunks).toString(), `${lines.join('\n')}\n`);
});

test('without follow the end is that of the beginning', async (t) => {
  const { logPath, begin } = lab(t);
  writeFileSync(logPath, line('first'));
  let output = '';
  await begin({}, async (chunk) => {
    output += chunk;
    appendFileSync(logPath, line('later'));
  }).done;
  assert.equal(output, 'first\n');
});

test('follow: what is written, also in halves, until the container has ended and all is read', async (t) => {
  const { logPath, begin, exit } = lab(t);
  writeFileSync(logPath, line('one') + line('two'));
  const following = begin({ follow: true, tailLines: 1 });
  await following.until('two\n');
  const three = line('three');
  appendFileSync(logPath, three.slice(0, 20));
  appendFileSync(logPath, three.slice(20, 45));
  appendFileSync(logPath, three.slice(45));
  await following.until('three\n');
  appendFileSync(logPath, line('last'));
  exit();
  await following.done;
  assert.equal(following.output(), 'two\nthree\nlast\n');
});

test('follow of a container that has ended ends at once', async (t) => {
  const { logPath, read, exit } = lab(t);
  writeFileSync(logPath, line('one'));
  exit();
  assert.equal(await read({ follow: true }), 'one\n');
});

test('follow before the first line: the file comes later', async (t) => {
  const { logPath, begin, exit } = lab(t);
  const following = begin({ follow: true });
  await new Promise((resolve) => setTimeout(resolve, 20));
  writeFileSync(logPath, line('one'));
  await following.until('one\n');
  exit();
  await following.done;
});

test('follow through rotations: nothing lost, nothing doubled', async (t) => {
  const { root, logPath, begin, exit } = lab(t);
  writeFileSync(logPath, line('a'));
  const following = begin({ follow: true });
  await following.until('a\n');
  renameSync(logPath, join(root, '0.log.20261006-000001'));
  appendFileSync(join(root, '0.log.20261006-000001'), line('b, before the writer opened anew'));
  await following.until('anew\n');
  writeFileSync(logPath, line('c'));
  await following.until('c\n');
  // Twice while nobody looks.
  renameSync(logPath, join(root, '0.log.20261006-000002'));
  appendFileSync(join(root, '0.log.20261006-000002'), line('d'));
  writeFileSync(join(root, '0.log.20261006-000003'), line('e'));
  writeFileSync(logPath, line('f'));
  exit();
  await following.done;
  assert.equal(following.output(), 'a\nb, before the writer opened anew\nc\nd\ne\nf\n');
});

test('follow of a file that is replaced or cut off in place', async (t) => {
  const { root, logPath, begin, exit } = lab(t);
  writeFileSync(logPath, line('one'));
  const following = begin({ follow: true });
  await following.until('one\n');
  writeFileSync(join(root, 'new'), line('two'));
  renameSync(join(root, 'new'), logPath);
  await following.until('two\n');
  truncateSync(logPath);
  appendFileSync(logPath, line('3'));
  await following.until('3\n');
  exit();
  await following.done;
});

test('follow through a symbolic link sees what its target gets', async (t) => {
  const { root, logPath, log, begin, exit } = lab(t);
  mkdirSync(join(root, 'links'));
  writeFileSync(logPath, line('one'));
  symlinkSync(logPath, join(root, 'links', 'web.log'));
  log.logPath = join(root, 'links', 'web.log');
  const following = begin({ follow: true });
  await following.until('one\n');
  appendFileSync(logPath, line('two'));
  await following.until('two\n');
  exit();
  await following.done;
});

test('limitBytes ends a follow', async (t) => {
  const { logPath, begin } = lab(t);
  writeFileSync(logPath, line('one'));
  const following = begin({ follow: true, limitBytes: 6 });
  await following.until('one\n');
  appendFileSync(logPath, line('two'));
  await following.done;
  assert.equal(following.output(), 'one\ntw');
});

test('a log that is gone is said to be; a running container without one has an empty one', async (t) => {
  const { read, exit, root } = lab(t);
  assert.equal(await read(), '');
  exit();
  await assert.rejects(read(), (error) => isError(error, 'NOT_FOUND'));
  rmSync(root, { recursive: true });
  await assert.rejects(read({ follow: true }), (error) => isError(error, 'NOT_FOUND'));
});

test('an abort ends a follow at each phase, and nothing stays open', async (t) => {
  const open = () =>
    readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`).includes('keelson-test-logs-');
      } catch {
        return false;
      }
    }).length;
  const watches = () => process.getActiveResourcesInfo().filter((name) => name === 'FSEventWrap').length;
  const turns = async () => {
    for (let turn = 0; turn < 200 && watches() > 0; turn++)
      await new Promise((resolve) => setImmediate(resolve));
  };
  await turns(); // Those of earlier tests are being closed.
  assert.equal(watches(), 0);
  for (let round = 0; round < 50; round++) {
    const { logPath, begin, abort, listeners } = lab(t);
    writeFileSync(logPath, line('one'));
    const following = begin(
      { follow: true },
      round % 2 === 0 ? undefined : () => Promise.reject(new Error('gone')),
    );
    for (let turn = 0; turn < round % 10; turn++) await new Promise((resolve) => setImmediate(resolve));
    abort.abort();
    await assert.rejects(following.done);
    assert.equal(listeners.size, 0);
  }
  await turns();
  assert.equal(open(), 0);
  assert.equal(watches(), 0);
});

test('fuzz: any bytes are read without an error, tail and whole, and no byte comes from outside the content', async (t) => {
  const { logPath, read } = lab(t);
  const pieces = [
    '\n',
    ' ',
    'P',
    'F',
    'F:x',
    'stdout',
    'stderr',
    '2026-10-06T00:00:00Z',
    '2026-99-99T00:00:00Z',
    '\0',
    '\xff',
    line('ok'),
    line('fine', 1, 'stderr'),
    line(''),
    line('p', 0, 'stdout', 'P'),
  ];
  let state = 4711;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  let given = 0;
  for (let round = 0; round < 300; round++) {
    const text = Array.from({ length: random(60) }, () => pieces[random(pieces.length)]).join('');
    writeFileSync(logPath, text, 'latin1');
    const all = await read();
    const tail = await read({ tailLines: random(5) });
    assert.ok(all.endsWith(tail), JSON.stringify({ text, all, tail }));
    given += all.length;
  }
  assert.ok(given > 500);
});

test('header: what is one and what is not', () => {
  const parse = (text: string) => parseLogLine(Buffer.from(text), 0, Buffer.byteLength(text));
  assert.deepEqual(parse('2026-10-06T00:00:00.5Z stderr P:x a b'), {
    time: start + 500,
    timestamp: '2026-10-06T00:00:00.5Z',
    stream: 'stderr',
    partial: true,
    contentStart: 34,
  });
  assert.equal(parse('2026-10-06T00:00:00Z stdout F')?.contentStart, 29);
  for (const bad of [
    '',
    'x',
    '2026-10-06T00:00:00Z',
    '2026-10-06T00:00:00Z stdin F x',
    '2026-10-06T00:00:00Z stdout',
    '2026-10-06T00:00:00Z stdout f x',
    '2026-10-06T25:00:00Z stdout F x',
    ' 2026-10-06T00:00:00Z stdout F x',
  ]) {
    assert.equal(parse(bad), undefined, bad);
  }
});
