/** What is to become of a mirror pod, and how it looks. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { mirrorOf, nextMirrorStep } from '../../../agent/manifests/mirror_plan.ts';

const pod: Pod = {
  metadata: { name: 'web-n', namespace: 'ns', uid: 'h1', annotations: { 'kubernetes.io/config.hash': 'h1' } },
  spec: { containers: [{ name: 'c', image: 'i' }] },
  status: { phase: 'Pending' },
};
const mirror = (hash: string, deletionTimestamp?: string): Pod => ({
  metadata: { name: 'web-n', annotations: { 'kubernetes.io/config.mirror': hash }, deletionTimestamp },
});

test('the step for every holder, mirror and state of knowledge', () => {
  const holders = { none: undefined, held: { pod, leaving: false }, leaving: { pod, leaving: true } };
  const mirrors = {
    none: undefined,
    same: mirror('h1'),
    other: mirror('h2'),
    dying: mirror('h1', '2026-01-01T00:00:00Z'),
  };
  const wanted: Readonly<Record<string, readonly string[]>> = {
    // Nothing read, the apiserver's list read, everything read.
    'none none': ['keep', 'keep', 'keep'],
    'none same': ['wait', 'wait', 'delete'],
    'none other': ['wait', 'wait', 'delete'],
    'none dying': ['wait', 'wait', 'delete'],
    'held none': ['wait', 'create', 'create'],
    'held same': ['keep', 'keep', 'keep'],
    'held other': ['delete', 'delete', 'delete'],
    'held dying': ['delete', 'delete', 'delete'],
    'leaving none': ['keep', 'keep', 'keep'],
    'leaving same': ['wait', 'wait', 'wait'],
    'leaving other': ['wait', 'wait', 'wait'],
    'leaving dying': ['wait', 'wait', 'wait'],
  };
  for (const [name, holder] of Object.entries(holders))
    for (const [kind, one] of Object.entries(mirrors)) {
      const steps = [
        [false, false],
        [true, false],
        [true, true],
      ].map(([listed, settled]) =>
        nextMirrorStep({ holder, mirror: one, listed: listed!, settled: settled! }),
      );
      assert.deepEqual(steps, wanted[`${name} ${kind}`], `${name} ${kind}`);
    }
});

test('a mirror carries the hash and its node as owner, and neither uid nor status', () => {
  assert.deepEqual(mirrorOf(pod, { name: 'n', uid: 'node-uid' }), {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: {
      name: 'web-n',
      namespace: 'ns',
      annotations: { 'kubernetes.io/config.hash': 'h1', 'kubernetes.io/config.mirror': 'h1' },
      ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: 'n', uid: 'node-uid', controller: true }],
    },
    spec: pod.spec,
  });
});
