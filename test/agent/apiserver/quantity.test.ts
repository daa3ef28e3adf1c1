import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  formatBytes,
  formatMilli,
  isQuantity,
  milli,
  parseQuantity,
  wholeUnits,
} from '../../../agent/apiserver/quantity.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { seeded } from './fake.ts';

test('every form of the specification', () => {
  const table: [string, number][] = [
    ['0', 0],
    ['1', 1],
    ['+1', 1],
    ['-1.5', -1.5],
    ['.5', 0.5],
    ['5.', 5],
    ['1n', 1e-9],
    ['1u', 1e-6],
    ['100m', 0.1],
    ['1k', 1000],
    ['1Ki', 1024],
    ['1.5Gi', 1.5 * 2 ** 30],
    ['128974848', 128974848],
    ['129e6', 129e6],
    ['129M', 129e6],
    ['1E', 1e18],
    ['1E3', 1000],
    ['1e-3', 0.001],
    ['1Ei', 2 ** 60],
    ['2T', 2e12],
    ['3Pi', 3 * 2 ** 50],
  ];
  for (const [text, value] of table) assert.equal(parseQuantity(text), value, text);
});

test('what is no quantity is refused', () => {
  for (const text of [
    '',
    '.',
    '-',
    '+',
    'm',
    'Ki',
    '1 ',
    ' 1',
    '1K',
    '1ki',
    '1mi',
    '1MI',
    '0x10',
    '1,5',
    '1..2',
    '--1',
    '1e',
    '1e+',
    '1e99',
    '1Kim',
    'NaN',
    'Infinity',
    '1'.repeat(100),
    '١',
  ]) {
    assert.throws(
      () => parseQuantity(text),
      (error) => isError(error, 'INVALID_ARGUMENT'),
      JSON.stringify(text),
    );
    assert.equal(isQuantity(text), false, text);
  }
});

test('milli and wholeUnits round up, exactly', () => {
  assert.equal(milli('0.1'), 100);
  assert.equal(milli('1.1'), 1100);
  assert.equal(milli('0.0001'), 1);
  assert.equal(milli('2u'), 1);
  assert.equal(milli('4.35'), 4350);
  assert.equal(milli('-0.0001'), -1);
  assert.equal(wholeUnits('0.1Ki'), 103);
  assert.equal(wholeUnits('1500m'), 2);
});

test('canonical forms', () => {
  assert.equal(formatBytes(0), '0');
  assert.equal(formatBytes(1000), '1000');
  assert.equal(formatBytes(24684084 * 1024), '24684084Ki');
  assert.equal(formatBytes(2 ** 30), '1Gi');
  assert.equal(formatMilli(2000), '2');
  assert.equal(formatMilli(1930), '1930m');
  assert.throws(() => formatBytes(0.5));
  assert.throws(() => formatMilli(Number.NaN));
});

test('what is formatted reads back, and the order of numbers is kept', () => {
  const random = seeded(3);
  for (let i = 0; i < 20_000; i++) {
    const bytes = Math.floor(random() * 2 ** (1 + random() * 52));
    assert.equal(parseQuantity(formatBytes(bytes)), bytes);
    assert.equal(milli(formatMilli(bytes)), bytes);
    const thousandths = Math.floor(random() * 1e6);
    const text = (thousandths / 1000).toFixed(3);
    assert.equal(milli(text), thousandths, text);
    assert.equal(parseQuantity(text), thousandths / 1000);
    assert.ok(milli(`${text}1`) === thousandths + 1);
  }
});

test('random text is a quantity or INVALID_ARGUMENT, and all three readers agree', () => {
  const random = seeded(5);
  const alphabet = '0123456789.+-eEKMGTPinumk ';
  for (let i = 0; i < 50_000; i++) {
    const text = Array.from(
      { length: 1 + random() * 6 },
      () => alphabet[Math.floor(random() * alphabet.length)],
    ).join('');
    if (!isQuantity(text)) {
      assert.throws(
        () => milli(text),
        (error) => isError(error, 'INVALID_ARGUMENT'),
      );
      continue;
    }
    const value = parseQuantity(text);
    assert.ok(Number.isFinite(value), text);
    const difference = milli(text) - value * 1000;
    assert.ok(Math.abs(difference) <= 1 + Math.abs(value) * 1e-9, `${text}: ${milli(text)} against ${value}`);
  }
});
