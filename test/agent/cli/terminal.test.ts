import assert from 'node:assert/strict';
import { test } from 'node:test';
import { drawBars } from '../../../agent/cli/terminal/bars.ts';
import { barsView, linesView } from '../../../agent/cli/terminal/progress.ts';
import { makeScreen } from '../../../agent/cli/terminal/screen.ts';
import { formatBytes, formatTable, printable, shortId } from '../../../agent/cli/terminal/text.ts';
import type { PullProgress } from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { digest, layer } from '../control/fake-images.ts';
import { makeEmulator } from './emulator.ts';

for (const [bytes, text] of [
  [0, '0 B'],
  [-5, '0 B'],
  [999, '999 B'],
  [1000, '1.0 kB'],
  [1049, '1.0 kB'],
  [99_900, '99.9 kB'],
  [99_960, '100 kB'],
  [999_400, '999 kB'],
  [999_600, '1.0 MB'],
  [45_600_000, '45.6 MB'],
  [123_456_789, '123 MB'],
  [4e9, '4.0 GB'],
  [5e18, '5000 PB'],
] as const) {
  test(`${bytes} bytes are ${text}`, () => assert.equal(formatBytes(bytes), text));
}

test('ids are short, tables aligned, and nobody steers the terminal', () => {
  assert.equal(shortId(digest('a')), 'aaaaaaaaaaaa');
  assert.equal(shortId('x'), 'x');
  assert.equal(
    formatTable(
      ['A', 'BB'],
      [
        ['long', 'x'],
        ['s', ''],
      ],
    ),
    'A     BB\nlong  x\ns\n',
  );
  assert.equal(formatTable(['A'], [['\x1b[2Jx\ny']]), 'A\n?[2Jx y\n');
  assert.equal(printable('a\x1b]0;t\x07b\x9bc\r\nd'), 'a?]0;t?b?c d');
});

const phases: readonly PullProgress['phase'][] = ['waiting', 'downloading', 'verifying', 'done', 'present'];
const many = (count: number): PullProgress[] =>
  Array.from({ length: count }, (_, at) =>
    layer('0', {
      digest: `sha256:${String(at).padStart(64, '0').split('').reverse().join('')}`,
      phase: phases[at % phases.length]!,
      bytes: at * 70_000,
      bytesPerSecond: at * 1e6,
    }),
  );

test('a picture fits into every window', () => {
  for (let columns = 1; columns <= 160; columns++) {
    for (const rows of [1, 2, 3, 4, 7, 24, 60]) {
      for (const count of [0, 1, 5, 23, 127]) {
        const lines = drawBars('registry.example:5000/team/app:v2', many(count), { columns, rows });
        assert.ok(lines.length <= rows - 1, `${lines.length} lines in ${rows} rows`);
        for (const line of lines) assert.ok(line.length < Math.max(2, columns), `${columns}: ${line}`);
      }
    }
  }
});

test('a wide window has all, a narrow one what matters', () => {
  const layers = [
    layer('1', { phase: 'downloading', bytes: 250_000, bytesPerSecond: 3_400_000 }),
    layer('2', { phase: 'verifying', bytes: 1_000_000 }),
    layer('3', { phase: 'done', bytes: 1_000_000 }),
  ];
  assert.deepEqual(
    drawBars('busybox', layers, { columns: 81, rows: 24 }),
    [
      '111111111111  downloading  [====>               ]    250 kB / 1.0 MB    3.4 MB/s',
      '222222222222  verifying    [====================]    1.0 MB / 1.0 MB',
      '333333333333  done                                            1.0 MB',
      'busybox: 1 of 3 layers, 2.3 MB of 3.0 MB, 3.4 MB/s',
    ].map((line) => line),
  );
  assert.deepEqual(drawBars('busybox', layers.slice(0, 1), { columns: 28, rows: 24 }), [
    '111111111111  downloading',
    '0 of 1 layers, 250 kB of 1.',
  ]);
});

test('of more layers than rows those at work are shown, in their order', () => {
  const layers = many(20);
  const lines = drawBars('x', layers, { columns: 120, rows: 10 });
  assert.equal(lines.length, 9);
  const shown = lines.slice(0, -1).map((line) => line.split(/\s+/)[1]);
  assert.deepEqual(shown, Array(4).fill(['downloading', 'verifying']).flat());
  assert.match(lines.at(-1)!, /8 of 20 layers, .*12 not shown$/);
});

test('pictures replace each other and leave what stood above', () => {
  const terminal = {
    columns: 60,
    rows: 8,
    shown: makeEmulator(60, 8),
    write: (text: string) => terminal.shown.write(text),
  };
  terminal.write('$ keelson pull x\n');
  const screen = makeScreen(terminal);
  for (const count of [1, 3, 7, 2, 5, 20, 4]) {
    const lines = drawBars('x', many(count), terminal);
    screen.draw(lines);
    assert.deepEqual(terminal.shown.lines().slice(-lines.length), lines);
    assert.equal(terminal.shown.cursorShown, false);
  }
  assert.deepEqual(terminal.shown.lines(), ['$ keelson pull x', ...drawBars('x', many(4), terminal)]);
  assert.equal(terminal.shown.wrapped, 0);
  screen.end();
  assert.equal(terminal.shown.cursorShown, true);
});

test('in a window that became narrower the broken lines are replaced too', () => {
  let written = '';
  const terminal = { columns: 80, rows: 24, write: (text: string) => (written = text) };
  const screen = makeScreen(terminal);
  screen.draw(['x'.repeat(79), 'y'.repeat(30), '']);
  terminal.columns = 40;
  screen.draw(['z']);
  assert.match(written, /\x1b\[4A/, 'two rows, one, and one');
  terminal.rows = 1;
  screen.draw(['z']);
  assert.doesNotMatch(written, /\x1b\[\d+A/);
});

/** A clock whose timers run when the test says. */
function handClock() {
  const timers = new Set<() => void>();
  const clock: Clock = {
    now: () => 0,
    monotonic: () => 0,
    after(_ms, callback) {
      timers.add(callback);
      return () => timers.delete(callback);
    },
  };
  const ring = () => {
    for (const timer of [...timers]) {
      timers.delete(timer);
      timer();
    }
  };
  return { clock, ring, timers };
}

test('a thousand steps are one picture; another size of the window is one more', () => {
  const { clock, ring, timers } = handClock();
  let writes = 0;
  let resized = () => {};
  const view = barsView({
    title: 'x',
    terminal: { columns: 0, rows: 0, write: () => writes++ },
    clock,
    onResize(listener) {
      resized = listener;
      return () => (resized = () => {});
    },
  });
  for (let at = 0; at < 1000; at++) view.tell(layer('1', { phase: 'downloading', bytes: at }));
  assert.equal(writes, 0);
  ring();
  assert.equal(writes, 1);
  resized();
  resized();
  ring();
  assert.equal(writes, 2);
  view.tell(layer('1', { phase: 'done' }));
  view.end();
  assert.equal(writes, 4, 'the last picture, and the cursor');
  assert.equal(timers.size, 0);
  resized();
  assert.equal(timers.size, 0);
});

test('elsewhere there is a line for each phase', () => {
  const lines: string[] = [];
  const view = linesView('busybox', (line) => lines.push(line));
  for (const phase of ['waiting', 'downloading', 'downloading', 'verifying', 'done'] as const) {
    view.tell(layer('1', { phase }));
  }
  view.tell(layer('2', { phase: 'present' }));
  view.end();
  assert.deepEqual(lines, [
    '111111111111 waiting (1.0 MB)',
    '111111111111 downloading (1.0 MB)',
    '111111111111 verifying (1.0 MB)',
    '111111111111 done (1.0 MB)',
    '222222222222 present (1.0 MB)',
    'busybox: 2 of 2 layers, 2.0 MB',
  ]);
});
