import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseDuration, printDuration } from '../../../agent/config/duration.ts';
import { editDistance, nearest } from '../../../agent/config/nearest.ts';

test('durations in the syntax of Go', () => {
  const cases: readonly [string, number][] = [
    ['0', 0],
    ['0s', 0],
    ['10s', 10_000],
    ['1m30s', 90_000],
    ['4h0m0s', 14_400_000],
    ['1.5h', 5_400_000],
    ['.5s', 500],
    ['1.s', 1000],
    ['100ms', 100],
    ['5us', 0.005],
    ['5µs', 0.005],
    ['7ns', 0.000007],
    ['-10s', -10_000],
    ['+1s', 1000],
  ];
  for (const [text, expected] of cases) assert.equal(parseDuration(text), expected, text);
});

test('what Go refuses is refused', () => {
  for (const text of [
    '',
    '10',
    's',
    '1d',
    '1 s',
    ' 1s',
    '1s ',
    '.s',
    '-',
    '1m30',
    '1e3s',
    '9999999h',
    '1s\n',
  ]) {
    assert.equal(parseDuration(text), undefined, JSON.stringify(text));
  }
});

test('distance counts insertions, deletions, replacements and swaps', () => {
  assert.equal(editDistance('maxPods', 'maxpods'), 0);
  assert.equal(editDistance('maxPods', 'maxPod'), 1);
  assert.equal(editDistance('maxPods', 'maxPdos'), 1);
  assert.equal(editDistance('maxPods', 'minPods'), 2);
  assert.equal(editDistance('', 'abc'), 3);
  assert.deepEqual(nearest('prot', ['port', 'address']), { name: 'port', distance: 1 });
  assert.equal(nearest('x', []), undefined);
});

test('durations are printed as Go prints them', () => {
  for (const text of [
    '0s',
    '1s',
    '1.5s',
    '10s',
    '1m0s',
    '1m30s',
    '4h0m0s',
    '100h0m1s',
    '100ms',
    '1.5ms',
    '250µs',
    '5ns',
  ]) {
    assert.equal(printDuration(parseDuration(text)!), text);
  }
});
