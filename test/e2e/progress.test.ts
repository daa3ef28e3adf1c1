import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeProgress } from './progress.ts';

test('each spec that ends is a line, whatever became of it', () => {
  const lines: string[] = [];
  const progress = makeProgress((line) => lines.push(line));
  for (const line of [
    'Will run 3 of 3206 specs',
    'Running in parallel across 4 processes',
    '------------------------------',
    '• [2.034 seconds]',
    '[sig-node] Pods should start [Conformance]',
    'k8s.io/kubernetes/test/e2e/common/node/pods.go:1',
    '  STEP: • [1 seconds] is no outcome @ 11/25/26',
    '• [FAILED] [12.100 seconds]',
    '[sig-storage] EmptyDir [It] should fail',
    'S [SKIPPED] [0.100 seconds]',
    '[sig-node] AppArmor [It] is skipped',
  ]) {
    progress(line);
  }
  assert.deepEqual(lines, [
    '1/3 passed [sig-node] Pods should start [Conformance] (2.034 seconds)',
    '2/3 FAILED [sig-storage] EmptyDir [It] should fail (12.100 seconds)',
    '3/3 SKIPPED [sig-node] AppArmor [It] is skipped (0.100 seconds)',
  ]);
});
