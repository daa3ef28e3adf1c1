import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  type CsiNode,
  emptyCsiNode,
  isOwned,
  nodePatch,
  withDriver,
  withoutDriver,
} from '../../../../agent/volumes/csi/csi_node.ts';

const node = (metadata: object = {}) => ({ metadata: { name: 'n', uid: 'u', ...metadata } });
const info = (changes: object = {}) => ({ nodeId: 'id', maxVolumes: 0n, topology: {}, ...changes });
const empty = emptyCsiNode(node());

test('the object belongs to the Node', () => {
  assert.equal(isOwned(empty, node()), true);
  assert.equal(isOwned(empty, node({ uid: 'other' })), false);
  assert.equal(isOwned({ ...empty, metadata: { name: 'n' } }, node()), false);
});

test('a driver comes, changes, stays and goes', () => {
  const one = withDriver(empty, 'd', info({ maxVolumes: 16n, topology: { b: '2', a: '1' } }));
  assert.deepEqual(one.spec.drivers, [
    { name: 'd', nodeID: 'id', topologyKeys: ['a', 'b'], allocatable: { count: 16 } },
  ]);
  assert.equal(withDriver(one, 'd', info({ maxVolumes: 16n, topology: { a: '9', b: '9' } })), one);
  const other = withDriver(one, 'd', info());
  assert.deepEqual(other.spec.drivers, [{ name: 'd', nodeID: 'id', topologyKeys: [] }]);
  assert.equal(withDriver(other, 'd', info()), other);
  const two = withDriver(other, 'e', info({ maxVolumes: 2n ** 40n }));
  assert.deepEqual(
    two.spec.drivers.map(({ name, allocatable }) => [name, allocatable?.count]),
    [
      ['d', undefined],
      ['e', 2 ** 31 - 1],
    ],
  );
  assert.equal(withoutDriver(two, 'x'), two);
  assert.deepEqual(withoutDriver(two, 'd').spec.drivers, [two.spec.drivers[1]]);
  const plain: CsiNode = { ...empty, spec: { drivers: [{ name: 'd', nodeID: 'id' }] } };
  assert.equal(withDriver(plain, 'd', info({ maxVolumes: -1n })), plain);
});

const annotation = 'csi.volume.kubernetes.io/nodeid';

test('the Node gets the driver’s id and its topology', () => {
  assert.deepEqual(nodePatch(node(), 'd', info({ topology: { zone: 'z' } })), {
    metadata: { annotations: { [annotation]: '{"d":"id"}' }, labels: { zone: 'z' } },
  });
  const there = node({ annotations: { [annotation]: '{"e":"x","d":"id"}' }, labels: { zone: 'z' } });
  assert.equal(nodePatch(there, 'd', info({ topology: { zone: 'z' } })), undefined);
  assert.deepEqual(nodePatch(there, 'd', info({ nodeId: 'new' })), {
    metadata: { annotations: { [annotation]: '{"e":"x","d":"new"}' } },
  });
  assert.deepEqual(nodePatch(there, 'd', undefined), {
    metadata: { annotations: { [annotation]: '{"e":"x"}' } },
  });
  assert.equal(nodePatch(there, 'other', undefined), undefined);
  assert.deepEqual(nodePatch(node({ annotations: { [annotation]: '{"d":"id"}' } }), 'd', undefined), {
    metadata: { annotations: { [annotation]: null } },
  });
});

test('labels that say otherwise, and annotations that are no object, are left alone', () => {
  assert.throws(() => nodePatch(node({ labels: { zone: 'y' } }), 'd', info({ topology: { zone: 'z' } })), {
    message: 'detected topology value collision: driver reported "zone":"z" but existing label is "zone":"y"',
  });
  for (const text of ['{', '[]', '"x"', 'null'])
    assert.throws(() => nodePatch(node({ annotations: { [annotation]: text } }), 'd', info()), {
      code: 'FAILED_PRECONDITION',
    });
});
