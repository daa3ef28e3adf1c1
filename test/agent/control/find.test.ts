/** Which container or pod a name means. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { findContainer, findPod, findPrevious, withPods } from '../../../agent/control/find.ts';
import type { ListedContainer } from '../../../agent/control/protocol.ts';
import type { Container, PodSandbox } from '../../../runtime/api.ts';
import { isError, type KeelsonError } from '../../../runtime/host/errors.ts';

const id = (beginning: string) => beginning.padEnd(64, '0');

function pod(beginning: string, name: string, change: Partial<PodSandbox> = {}): PodSandbox {
  const [namespace, own] = name.split('/') as [string, string];
  return {
    id: id(beginning),
    metadata: { name: own, namespace, uid: `uid-${name}`, attempt: 0 },
    state: 'ready',
    createdAt: 1,
    labels: {},
    annotations: {},
    runtimeHandler: '',
    ...change,
  };
}

function container(
  beginning: string,
  { id: podSandboxId, metadata }: PodSandbox,
  name: string,
  change: Partial<ListedContainer> = {},
): ListedContainer {
  return {
    id: id(beginning),
    podSandboxId,
    metadata: { name, attempt: 0 },
    pod: metadata,
    image: 'i',
    imageRef: 'sha256:i',
    state: 'running',
    createdAt: 1,
    labels: {},
    annotations: {},
    ...change,
  };
}

const web = pod('aa1', 'default/web');
const api = pod('aa2', 'default/api');
const other = pod('b', 'team/web');
const pods = [web, api, other];
const old = container('d1', web, 'main', {
  state: 'exited',
  createdAt: 5,
  metadata: { name: 'main', attempt: 1 },
});
const containers = [
  container('c1', web, 'main', { metadata: { name: 'main', attempt: 2 } }),
  old,
  container('d2', web, 'main', { state: 'exited' }),
  container('c2', api, 'main'),
  container('c3', other, 'main'),
  container('e1', api, 'side', { state: 'exited', createdAt: 1 }),
  container('e2', api, 'side', { state: 'exited', createdAt: 2 }),
  container('f1', api, 'c3'),
];

const candidates = (error: unknown) => (error as KeelsonError).details['candidates'];

for (const [text, found] of [
  [id('d1'), 'd1'],
  ['c1', 'c1'],
  ['d1', 'd1'],
  ['default/web/main', 'c1'],
  ['api/main', 'c2'],
  ['team/web/main', 'c3'],
  ['side', 'e2'],
  ['api/c3', 'f1'],
] as const) {
  test(`the container ${text.slice(0, 20)}`, () => {
    assert.equal(findContainer(text, containers).id, id(found));
  });
}

for (const [text, several] of [
  ['main', ['c1', 'c2', 'c3']],
  ['web/main', ['c1', 'c3']],
  ['d', ['d1', 'd2']],
  // A name and the beginning of an id.
  ['c3', ['f1', 'c3']],
] as const) {
  test(`the container ${text} may be several`, () => {
    assert.throws(
      () => findContainer(text, containers),
      (error) => {
        assert.ok(isError(error, 'INVALID_ARGUMENT'));
        assert.deepEqual(candidates(error), several.map(id));
        return true;
      },
    );
  });
}

for (const text of ['', 'mai', 'ain', 'b/main', '/main', 'main/', 'C1', `${id('d1')}0`, '../main', 'web']) {
  test(`no container is ${JSON.stringify(text.slice(0, 20))}`, () => {
    assert.throws(
      () => findContainer(text, containers),
      (error) => isError(error, 'NOT_FOUND'),
    );
  });
}

test('pods by id and name; the one that is ready goes before newer ones', () => {
  assert.equal(findPod('api', pods), api);
  assert.equal(findPod('team/web', pods), other);
  assert.equal(findPod('aa1', pods), web);
  assert.throws(() => findPod('web', pods), /default\/web \(aa1000000000\), team\/web \(b00000000000\)/);
  assert.throws(() => findPod('aa', pods), /may be any of 2 pods/);
  const newer = pod('f', 'default/api', { state: 'notready', createdAt: 9 });
  assert.equal(findPod('api', [newer, ...pods]), api);
  const newest = pod('f', 'default/api', { createdAt: 9 });
  assert.equal(findPod('api', [newest, ...pods]), newest);
});

test('an error names ten candidates at most', () => {
  const many = Array.from({ length: 12 }, (_, at) => pod(`${at + 10}`, `n${at}/web`));
  assert.throws(() => findPod('web', many), /any of 12 pods: n0\/web .* n9\/web \(19\d+\) and 2 more/);
});

test('the container before is of the same pod and name', () => {
  assert.equal(findPrevious(containers[0]!, containers), old);
  assert.equal(findPrevious(old, containers).id, id('d2'));
  assert.throws(
    () => findPrevious(containers[2]!, containers),
    (error) => isError(error, 'NOT_FOUND'),
  );
});

test('containers whose sandbox has gone are left out', () => {
  const bare: Container[] = containers;
  assert.deepEqual(
    withPods(bare, [other]).map((one) => [one.id, one.pod]),
    [[id('c3'), other.metadata]],
  );
});
