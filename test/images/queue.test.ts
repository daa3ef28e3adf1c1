/** Whose turn it is to be fetched, and how much may be under way. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeFlight, makeInlet } from '../../images/fetch/inlet.ts';
import { FairQueue, makeFetchQueue } from '../../images/fetch/queue.ts';
import type { Unpacking } from '../../images/unpack/pool.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage } from '../peers/image.ts';
import { openImages } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';
const never = new AbortController().signal;

/** A queue of names, and all that is left in it, in order. */
function orderOf(fill: (queue: FairQueue, add: (id: string, image: string) => void) => void): string[] {
  const queue = new FairQueue();
  const names = new Map<unknown, string>();
  fill(queue, (id, image) => {
    const run = async () => {};
    names.set(run, id);
    queue.enqueue(run, { id, image });
  });
  const order: string[] = [];
  for (let size = queue.size; size > 0; size--) {
    assert.equal(queue.size, size);
    order.push(names.get(queue.dequeue())!);
  }
  assert.equal(queue.size, 0);
  assert.equal(queue.dequeue(), undefined);
  return order;
}

test('images take turns, each with its oldest layer', () => {
  assert.deepEqual(
    orderOf((_, add) => {
      for (const id of ['a1', 'a2', 'a3', 'a4']) add(id, 'a');
      for (const id of ['b1', 'b2']) add(id, 'b');
      add('c1', 'c');
    }),
    ['a1', 'b1', 'c1', 'a2', 'b2', 'a3', 'a4'],
  );
  assert.deepEqual(
    orderOf((queue, add) => {
      add('a1', 'a');
      add('a2', 'a');
      add('a3', 'a');
      queue.dequeue();
      add('b1', 'b');
    }),
    ['a2', 'b1', 'a3'],
  );
});

test('a layer that several images wait for goes at the first turn of any of them, once', () => {
  assert.deepEqual(
    orderOf((queue, add) => {
      for (const id of ['a1', 'a2', 'a3', 'shared']) add(id, 'a');
      queue.alsoFor('shared', 'b');
      queue.alsoFor('shared', 'b');
      queue.alsoFor('unknown', 'b');
      add('b2', 'b');
    }),
    ['a1', 'shared', 'a2', 'b2', 'a3'],
  );
});

test('what is removed has no turn and costs its image none', () => {
  assert.deepEqual(
    orderOf((queue, add) => {
      for (const id of ['a1', 'a2', 'a3']) add(id, 'a');
      add('b1', 'b');
      add('c1', 'c');
      queue.remove('a1');
      queue.remove('a1');
      queue.remove('b1');
    }),
    ['a2', 'c1', 'a3'],
  );
});

test('with any number of layers, no image is served twice while another waits', () => {
  for (const counts of [[1], [5, 1], [1, 5], [3, 3, 3], [7, 2, 4, 1]]) {
    const order = orderOf((_, add) => {
      for (const [image, count] of counts.entries()) {
        for (let layer = 0; layer < count; layer++) add(`${image}.${layer}`, String(image));
      }
    });
    const left = [...counts];
    for (const [at, id] of order.entries()) {
      const image = Number(id.split('.')[0]);
      const others = new Set(
        order.slice(Math.max(0, at - 1), at).map((other) => Number(other.split('.')[0])),
      );
      if (others.has(image))
        assert.equal(left.filter((n, i) => i !== image && n > 0).length, 0, order.join());
      left[image]!--;
    }
    assert.equal(
      order.length,
      counts.reduce((sum, n) => sum + n),
    );
  }
});

test('no more than the bound run at once; an aborted wait ends at once, a run only by itself', async () => {
  const queue = makeFetchQueue(2);
  const gates = Array.from({ length: 4 }, () => Promise.withResolvers<void>());
  const begun: number[] = [];
  const entered = gates.map(() => Promise.withResolvers<void>());
  const cancels = gates.map(() => new AbortController());
  const places = gates.map((gate, at) =>
    queue.add(
      'image',
      () => {
        begun.push(at);
        entered[at]!.resolve();
        return gate.promise;
      },
      cancels[at]!.signal,
    ),
  );
  await Promise.all([entered[0]!.promise, entered[1]!.promise]);
  assert.equal(queue.waiting, 2);
  cancels[2]!.abort();
  await assert.rejects(places[2]!.done, { code: 'ABORTED' });
  cancels[0]!.abort(); // It has begun, and still has its place.
  await new Promise(setImmediate);
  assert.deepEqual(begun, [0, 1]);
  gates[0]!.resolve();
  await places[0]!.done;
  await entered[3]!.promise;
  gates[1]!.reject(new Error('failed'));
  await assert.rejects(places[1]!.done, /failed/);
  gates[3]!.resolve();
  await places[3]!.done;
  await assert.rejects(queue.add('image', async () => {}, AbortSignal.abort()).done, { code: 'ABORTED' });
  assert.equal(queue.waiting, 0);
  await queue.add('image', async () => {}, never).done;
});

test('bytes under way are shared out, and each layer may always have something', async () => {
  const flight = makeFlight(100);
  const [a, b] = [flight.join(), flight.join()];
  a.add(40);
  assert.equal(a.full, false);
  a.add(10);
  assert.equal(a.full, true, 'half of it is its share');
  b.add(60);
  assert.equal(b.full, true);
  assert.equal(flight.bytes, 110);
  a.take(50);
  assert.equal(a.full, false, 'nothing of it is under way');
  a.add(45);
  assert.equal(a.full, true, 'all together are too many');
  let woken = false;
  const room = a.room().then(() => {
    woken = true;
  });
  b.take(0);
  await Promise.resolve();
  assert.equal(woken, false);
  b.leave();
  await room;
  assert.equal(flight.bytes, 45);
  assert.equal(flight.layers, 1);
  a.leave();
  assert.deepEqual([flight.bytes, flight.layers], [0, 0]);
});

test('an inlet hands everything on in order, holds its giver up, and tells of a failure once', async () => {
  const flight = makeFlight(10);
  const written: string[] = [];
  let gate = Promise.withResolvers<void>();
  const unpacking: Unpacking = {
    async write(bytes) {
      await gate.promise;
      if (bytes.toString() === 'bad') throw new Error('cannot');
      written.push(bytes.toString());
    },
    end: () => Promise.reject(new Error('not used')),
    abort: async () => {},
  };
  const failures: unknown[] = [];
  const inlet = makeInlet(Promise.resolve(unpacking), flight, (error) => failures.push(error));
  assert.equal(inlet.give(Buffer.from('12345')), undefined);
  const held = inlet.give(Buffer.from('67890'));
  assert.ok(held instanceof Promise);
  assert.deepEqual([inlet.received, flight.bytes], [10, 10]);
  gate.resolve();
  await held;
  await inlet.drained();
  assert.deepEqual(written, ['12345', '67890']);
  assert.equal(flight.bytes, 0);

  gate = Promise.withResolvers();
  inlet.give(Buffer.from('bad'));
  inlet.give(Buffer.from('more'));
  gate.resolve();
  await assert.rejects(inlet.drained(), /cannot/);
  assert.throws(() => inlet.give(Buffer.from('x')), /cannot/);
  assert.equal(failures.length, 1);
  inlet.close();
  inlet.close();
  assert.deepEqual([flight.bytes, flight.layers], [0, 0]);
});

test('an inlet whose unpacking cannot begin fails', async () => {
  const failures: unknown[] = [];
  const inlet = makeInlet(Promise.reject(new Error('no thread')), makeFlight(10), (e) => failures.push(e));
  inlet.give(Buffer.from('x'));
  await assert.rejects(inlet.drained(), /no thread/);
  assert.equal(failures.length, 1);
  inlet.close();
});

test('a small image does not wait for all layers of a big one', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const file = (name: string) => ({ files: [{ path: name, content: name }] });
  const big = buildImage({ layers: Array.from({ length: 12 }, (_, at) => file(`big-${at}`)) });
  const little = buildImage({ layers: [file('little')] });
  registry.image('big', big);
  registry.image('little', little);
  const { images } = await openImages(t, { parallelDownloads: 1 });
  const queued = Promise.withResolvers<void>();
  images.events(({ digest, phase }) => {
    if (digest === little.layers[0]!.digest && phase === 'waiting') queued.resolve();
  });
  const reached = Promise.withResolvers<void>();
  const fetched: string[] = [];
  const layers = [...big.layers, ...little.layers].map(({ digest }) => digest);
  registry.intercept = (request, response) => {
    const digest = layers.find((each) => request.url?.endsWith(each));
    if (digest === undefined) return false;
    fetched.push(digest);
    if (fetched.length > 1) return false;
    reached.resolve();
    void queued.promise.then(() => response.end(big.layers[layers.indexOf(digest)]!.data));
    return true;
  };
  const pulls = [images.pullImage({ image: `${registry.host}/a:big` })];
  await reached.promise;
  pulls.push(images.pullImage({ image: `${registry.host}/b:little` }));
  await Promise.all(pulls);
  assert.equal(fetched.length, 13);
  const turn = fetched.indexOf(little.layers[0]!.digest);
  assert.ok(turn >= 1 && turn <= 2, `its turn was ${turn}`);
});
