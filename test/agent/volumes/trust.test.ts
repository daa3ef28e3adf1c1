import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ApiserverClient, WatchEvent } from '../../../agent/apiserver/types.ts';
import { selects, trustAnchors } from '../../../agent/volumes/trust/anchors.ts';
import { makeTrust } from '../../../agent/volumes/trust/bundles.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

const pem = (text: string, lines = 64) =>
  `-----BEGIN CERTIFICATE-----\n${Buffer.from(text)
    .toString('base64')
    .replace(new RegExp(`.{1,${lines}}`, 'g'), '$&\n')}-----END CERTIFICATE-----\n`;

test('label selectors', () => {
  const labels = { a: '1', b: '2' };
  assert.equal(selects(undefined, labels), false);
  assert.equal(selects({}, labels), true);
  const one = (operator: string, key: string, ...values: string[]) =>
    selects({ matchExpressions: [{ key, operator, values }] }, labels);
  assert.deepEqual(
    [
      selects({ matchLabels: { a: '1' } }, labels),
      selects({ matchLabels: { a: '1', b: '1' } }, labels),
      one('In', 'a', '0', '1'),
      one('In', 'c', '0'),
      one('NotIn', 'a', '1'),
      one('NotIn', 'c', '1'),
      one('Exists', 'a'),
      one('Exists', 'c'),
      one('DoesNotExist', 'a'),
      one('DoesNotExist', 'c'),
      one('Like', 'a', '1'),
      selects(
        { matchLabels: { a: '1' }, matchExpressions: [{ key: 'b', operator: 'DoesNotExist' }] },
        labels,
      ),
    ],
    [true, false, true, false, false, true, true, false, false, true, false, false],
  );
});

test('certificates are there once, whatever is around them and however they are wrapped', () => {
  const [a, b] = ['first certificate '.repeat(9), 'second certificate '.repeat(9)];
  const text = trustAnchors([`words\n${pem(a)}# more\n${pem(b, 20)}`, pem(a, 30).replaceAll('\n', '\r\n')]);
  assert.equal(text, [pem(a), pem(b)].sort().join(''));
  assert.equal(trustAnchors([pem(b), pem(a)]), text);
  assert.equal(trustAnchors(['nothing', '']), '');
});

const bundle = (name: string, signerName: string, labels: Record<string, string>, text: string) => ({
  metadata: { name, uid: name, resourceVersion: '1', labels },
  spec: { signerName, trustBundle: pem(text) },
});

/** An apiserver that has bundles in `version` only. */
function apiserver(version: string, items: readonly object[]) {
  const asked: string[] = [];
  const never = () => assert.fail('not called');
  let tell: (event: WatchEvent<object>) => void = () => {};
  const client: ApiserverClient = {
    async get<T>(path: string): Promise<T> {
      asked.push(path);
      if (path.endsWith(`/${version}`)) return { resources: [{ name: 'clustertrustbundles' }] } as T;
      if (path.endsWith('/v1')) return { resources: [{ name: 'certificatesigningrequests' }] } as T;
      throw new KeelsonError('API_STATUS', 'not found', { details: { status: 404, reason: 'NotFound' } });
    },
    async list<T>(path: string) {
      asked.push(path);
      return { metadata: { resourceVersion: '5' }, items: items as T[] };
    },
    async *watch<T>(_: string, options?: { signal?: AbortSignal }) {
      for (;;) {
        const next = Promise.withResolvers<WatchEvent<object>>();
        tell = next.resolve;
        options?.signal?.addEventListener('abort', () => next.reject(options.signal!.reason));
        yield (await next.promise) as WatchEvent<T>;
      }
    },
    create: never,
    replace: never,
    patch: never,
    delete: never,
    requests: new Map(),
    close: async () => {},
  };
  return { client, asked, tell: (event: WatchEvent<object>) => tell(event) };
}

test('bundles by name and by signer, followed in the version that is served', async (t) => {
  const ending = new AbortController();
  t.after(() => ending.abort());
  const { client, asked, tell } = apiserver('v1beta1', [
    bundle('one', '', {}, 'ONE'),
    bundle('s:a', 's', { live: 'yes' }, 'A'),
    bundle('s:b', 's', { live: 'no' }, 'B'),
    bundle('other', 'o', { live: 'yes' }, 'OTHER'),
  ]);
  const trust = makeTrust({ client, clock: systemClock, log: makeLogger('silent'), ending: ending.signal });
  const read = (rest: object) => trust.anchors({ path: 'p', ...rest }, undefined);
  const [one, again] = await Promise.all([read({ name: 'one' }), read({ name: 'one' })]);
  assert.deepEqual([one, again], [pem('ONE'), pem('ONE')]);
  assert.equal(await read({ signerName: 's', labelSelector: { matchLabels: { live: 'yes' } } }), pem('A'));
  assert.equal(await read({ signerName: 's', labelSelector: {} }), [pem('A'), pem('B')].sort().join(''));
  assert.equal(await read({ signerName: 's', optional: true }), '', 'no selector selects nothing');
  assert.equal(await read({ name: 'none', optional: true }), '');
  await assert.rejects(read({ name: 'none' }), {
    message: 'while getting ClusterTrustBundle: clustertrustbundle.certificates.k8s.io "none" not found',
  });
  await assert.rejects(read({ signerName: 's' }), {
    message: 'combination of signerName and labelSelector matched zero ClusterTrustBundles',
  });
  await assert.rejects(read({}), /requires either name or signerName/);
  const changed = { ...bundle('one', '', {}, 'TWO') };
  tell({ type: 'MODIFIED', object: { ...changed, metadata: { ...changed.metadata, resourceVersion: '6' } } });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(await read({ name: 'one' }), pem('TWO'));
  assert.deepEqual(asked, [
    '/apis/certificates.k8s.io/v1',
    '/apis/certificates.k8s.io/v1beta1',
    '/apis/certificates.k8s.io/v1beta1/clustertrustbundles',
  ]);
  await assert.rejects(trust.anchors({ path: 'p', name: 'one' }, AbortSignal.abort()), (error) =>
    isError(error, 'ABORTED'),
  );
});

test('an apiserver without them, or none at all, is named; later it may have them', async () => {
  const { client, asked } = apiserver('v2', []);
  const log = makeLogger('silent');
  const trust = makeTrust({ client, clock: systemClock, log });
  const read = () => trust.anchors({ path: 'p', name: 'x' }, undefined);
  for (const round of [1, 2]) {
    await assert.rejects(
      read(),
      (error) => isError(error, 'VOLUME_FAILED') && /not supported/.test(error.message),
    );
    assert.equal(asked.length, 3 * round);
  }
  const alone = makeTrust({ client: undefined, clock: systemClock, log });
  await assert.rejects(alone.anchors({ path: 'p', name: 'x' }, undefined), { code: 'VOLUME_FAILED' });
});
