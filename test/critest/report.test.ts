import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type AllowedSkip, describe, type GinkgoReport, judge } from './report.ts';
import { allowedSkips, unrunnable } from './skips.ts';

type SpecReport = NonNullable<GinkgoReport['SpecReports']>[number];

const spec = (name: string, state: string, message?: string): SpecReport => ({
  ContainerHierarchyTexts: ['[k8s.io] Room'],
  LeafNodeType: 'It',
  LeafNodeText: name,
  State: state,
  ...(message === undefined ? {} : { Failure: { Message: message } }),
});
const report = (...specs: SpecReport[]): GinkgoReport[] => [{ SpecReports: specs }];
const rule = (over: Partial<AllowedSkip> = {}): AllowedSkip => ({
  name: 'moon',
  reason: /no moon/,
  count: 1,
  because: 'there is no moon',
  ...over,
});
const names = (specs: readonly { name: string }[]) => specs.map(({ name }) => name);

test('specs are told apart by their state, benchmarks that do not run are left out', () => {
  const verdict = judge(
    report(
      spec('works', 'passed'),
      spec('breaks', 'failed', 'why'),
      spec('crashes', 'panicked'),
      spec('hangs', 'timedout'),
      spec('was broken off', 'interrupted'),
      spec('waits', 'pending'),
      spec('does not', 'skipped', 'reason'),
      spec('benchmark about lifecycle', 'skipped'),
    ),
    [],
  );
  assert.deepEqual(names(verdict.passed), ['[k8s.io] Room works']);
  assert.deepEqual(names(verdict.failed), [
    '[k8s.io] Room breaks',
    '[k8s.io] Room crashes',
    '[k8s.io] Room hangs',
    '[k8s.io] Room was broken off',
  ]);
  assert.deepEqual(names(verdict.skipped), ['[k8s.io] Room does not', '[k8s.io] Room waits']);
  assert.deepEqual(verdict.unexpected, verdict.skipped);
});

test('a setup of the whole suite that fails is a failure, one that works is no spec', () => {
  const setup = (state: string): SpecReport => ({
    ContainerHierarchyTexts: null,
    LeafNodeType: 'BeforeSuite',
    LeafNodeText: '',
    State: state,
  });
  assert.deepEqual(names(judge(report(setup('failed')), []).failed), ['BeforeSuite']);
  assert.deepEqual(judge(report(setup('passed')), []).passed, []);
});

test('a skip is allowed by name, reason and number together', () => {
  const two = report(spec('moon one', 'skipped', 'no moon'), spec('moon two', 'skipped', 'no moon'));
  const unexpected = (rules: AllowedSkip[]) => names(judge(two, rules).unexpected);
  assert.deepEqual(unexpected([rule({ count: 2 })]), []);
  assert.deepEqual(unexpected([rule()]), ['[k8s.io] Room moon two']);
  assert.deepEqual(unexpected([rule({ count: 2, name: 'sun' })]).length, 2);
  assert.deepEqual(unexpected([rule({ count: 2, reason: /no sun/ })]).length, 2);
  assert.deepEqual(
    unexpected([rule({ count: 2, reason: undefined })]).length,
    2,
    'skipped by itself, not by us',
  );
  assert.deepEqual(unexpected([rule(), rule({ name: /two$/ })]), []);
});

test('the sum is a line of its own, the last one', () => {
  const verdict = judge(
    report(
      spec('a', 'passed'),
      spec('b', 'failed', 'one\ntwo'),
      spec('moon', 'skipped', 'no moon'),
      spec('c', 'skipped'),
    ),
    [rule()],
  );
  assert.deepEqual(describe(verdict, [rule()]), [
    'FAILED  [k8s.io] Room b',
    '        one',
    '        two',
    'SKIPPED though nothing allows it  [k8s.io] Room c',
    '        skipped',
    'skipped 1 as expected: there is no moon',
    '1 passed, 1 failed, 2 skipped',
  ]);
});

test('what may be skipped depends on the machine', () => {
  const count = (facts: Parameters<typeof allowedSkips>[0]) =>
    allowedSkips(facts).reduce((sum, { count }) => sum + count, 0);
  const bare = count({ appArmor: false, userNamespaces: false });
  const full = count({ appArmor: true, userNamespaces: true });
  assert.ok(full < bare);
  const named = report(spec(unrunnable, 'skipped'));
  assert.deepEqual(judge(named, allowedSkips({ appArmor: true, userNamespaces: true })).unexpected, []);
});
