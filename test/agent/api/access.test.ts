/** Who a request comes from, and what that user may do: with the apiserver's answers given by the test. */
import assert from 'node:assert/strict';
import type { IncomingMessage } from 'node:http';
import { test } from 'node:test';
import { bearerToken, makeAuthenticator, userOfSubject } from '../../../agent/api/authn.ts';
import { makeAuthorizer } from '../../../agent/api/authz.ts';
import { isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { handClock, reviewClient } from './reviews.ts';

const signal = new AbortController().signal;
const request = (authorization?: string) =>
  ({ headers: { authorization }, socket: {} }) as unknown as IncomingMessage;
const unauthenticated = (error: unknown) => isError(error, 'UNAUTHENTICATED');
const accepted = {
  authenticated: true,
  user: { username: 'ada', uid: '7', groups: ['dev'], extra: { scope: ['a'] } },
};

test('the subject of a certificate: CN is the user, O are the groups', () => {
  assert.deepEqual(userOfSubject({ CN: 'ada', O: ['dev', 'ops'] }), { name: 'ada', groups: ['dev', 'ops'] });
  assert.deepEqual(userOfSubject({ CN: 'ada', O: 'dev' }), { name: 'ada', groups: ['dev'] });
  assert.deepEqual(userOfSubject({ CN: ['first', 'last'] }), { name: 'last', groups: [] });
  assert.equal(userOfSubject({ O: 'system:masters' }), undefined);
  assert.equal(userOfSubject({ CN: '', O: 'system:masters' }), undefined);
});

test('the bearer token of a header', () => {
  for (const [header, token] of [
    ['Bearer abc', 'abc'],
    ['bearer  abc ', 'abc'],
    ['Bearer', undefined],
    ['Bearer a b', undefined],
    ['Basic abc', undefined],
    ['xBearer abc', undefined],
    [undefined, undefined],
  ] as const) {
    assert.equal(bearerToken(header), token, String(header));
  }
});

test('a token is reviewed once in two minutes, also a bad one, and never kept', async () => {
  const clock = handClock();
  const { client, asked } = reviewClient(({ spec }) =>
    spec.token === 'good' ? accepted : { authenticated: false },
  );
  const { authenticate } = makeAuthenticator({ anonymous: true, webhook: true, client, clock });
  for (let round = 0; round < 3; round++) {
    assert.deepEqual(await authenticate(request('Bearer good'), signal), {
      name: 'ada',
      uid: '7',
      groups: ['dev', 'system:authenticated'],
      extra: { scope: ['a'] },
    });
    await assert.rejects(authenticate(request('Bearer bad'), signal), unauthenticated);
  }
  assert.deepEqual(
    asked.map(({ path, spec }) => [path, spec.token]),
    [
      ['/apis/authentication.k8s.io/v1/tokenreviews', 'good'],
      ['/apis/authentication.k8s.io/v1/tokenreviews', 'bad'],
    ],
  );
  clock.move(121_000);
  await authenticate(request('Bearer good'), signal);
  assert.equal(asked.length, 3);
});

test('answers that are none make no user', async () => {
  for (const status of [
    undefined,
    {},
    { authenticated: 'yes', user: { username: 'x' } },
    { authenticated: true },
    { authenticated: true, user: { username: '' } },
  ]) {
    const { client } = reviewClient(() => status);
    const { authenticate } = makeAuthenticator({
      anonymous: true,
      webhook: true,
      client,
      clock: handClock(),
    });
    await assert.rejects(authenticate(request('Bearer x'), signal), unauthenticated, JSON.stringify(status));
  }
});

test('an apiserver that cannot be asked is no "no", and is asked again', async () => {
  let down = true;
  const { client } = reviewClient(() => {
    if (down) throw new KeelsonError('API_UNREACHABLE', 'down');
    return accepted;
  });
  const { authenticate } = makeAuthenticator({ anonymous: false, webhook: true, client, clock: handClock() });
  await assert.rejects(authenticate(request('Bearer x'), signal), (error) =>
    isError(error, 'API_UNREACHABLE'),
  );
  down = false;
  assert.equal((await authenticate(request('Bearer x'), signal)).name, 'ada');
});

test('anonymous only where it is configured and nothing was presented', async () => {
  const { client, asked } = reviewClient(() => accepted);
  const make = (anonymous: boolean, webhook: boolean) =>
    makeAuthenticator({ anonymous, webhook, client, clock: handClock() });
  assert.deepEqual(await make(true, true).authenticate(request(), signal), {
    name: 'system:anonymous',
    groups: ['system:unauthenticated'],
  });
  await assert.rejects(make(false, true).authenticate(request(), signal), unauthenticated);
  await assert.rejects(make(true, false).authenticate(request('Bearer good'), signal), unauthenticated);
  await assert.rejects(make(true, true).authenticate(request('Basic Zm9v'), signal), unauthenticated);
  assert.deepEqual(asked, []);
});

const ada = { name: 'ada', groups: ['dev'] };
const wanted = [
  { verb: 'get', subresource: 'pods' },
  { verb: 'get', subresource: 'proxy' },
];

test('the finer subresource is asked for first, then proxy', async () => {
  const { client, asked } = reviewClient(({ spec }) => ({
    allowed: spec.resourceAttributes!.subresource === 'proxy',
  }));
  const { authorize } = makeAuthorizer({ mode: 'Webhook', nodeName: 'edge-1', client, clock: handClock() });
  await authorize(ada, wanted, signal);
  assert.deepEqual(asked[0], {
    path: '/apis/authorization.k8s.io/v1/subjectaccessreviews',
    spec: {
      user: 'ada',
      uid: undefined,
      groups: ['dev'],
      extra: undefined,
      resourceAttributes: {
        verb: 'get',
        version: 'v1',
        resource: 'nodes',
        subresource: 'pods',
        name: 'edge-1',
      },
    },
  });
  assert.equal(asked[1]!.spec.resourceAttributes!.subresource, 'proxy');
  assert.equal(asked.length, 2);
});

test('a yes counts five minutes, a no thirty seconds, each for its own user', async () => {
  const clock = handClock();
  const { client, asked } = reviewClient(({ spec }) => ({ allowed: spec.user === 'ada' }));
  const { authorize } = makeAuthorizer({ mode: 'Webhook', nodeName: 'edge-1', client, clock });
  const bob = { name: 'bob', groups: ['dev'] };
  const one = wanted.slice(1);
  const both = async () => {
    await authorize(ada, one, signal);
    await assert.rejects(
      authorize(bob, one, signal),
      (error) =>
        isError(error, 'PERMISSION_DENIED') &&
        error.message === 'Forbidden (user=bob, verb=get, resource=nodes, subresource(s)=[proxy])',
    );
  };
  await both();
  clock.move(29_000);
  await both();
  assert.equal(asked.length, 2);
  clock.move(2_000);
  await both();
  assert.equal(asked.length, 3);
  clock.move(270_000);
  await both();
  assert.equal(asked.length, 5);
});

test('fail closed: no client, an apiserver that is down, an answer that is none, nothing asked for', async () => {
  const down = reviewClient(() => {
    throw new KeelsonError('API_UNREACHABLE', 'down');
  }).client;
  for (const client of [undefined, down]) {
    const { authorize } = makeAuthorizer({ mode: 'Webhook', nodeName: 'n', client, clock: handClock() });
    await assert.rejects(
      authorize(ada, wanted, signal),
      (error) =>
        isError(error, 'INTERNAL') && /^Authorization error \(user=ada, verb=get, /.test(error.message),
    );
  }
  for (const status of [undefined, {}, { allowed: 'true' }, { allowed: true, denied: true }]) {
    const { client } = reviewClient(() => status);
    const { authorize } = makeAuthorizer({ mode: 'Webhook', nodeName: 'n', client, clock: handClock() });
    await assert.rejects(authorize(ada, wanted, signal), (error) => isError(error, 'PERMISSION_DENIED'));
  }
  const { client } = reviewClient(() => ({ allowed: true }));
  const { authorize } = makeAuthorizer({ mode: 'Webhook', nodeName: 'n', client, clock: handClock() });
  await assert.rejects(authorize(ada, [], signal), (error) => isError(error, 'PERMISSION_DENIED'));
});

test('AlwaysAllow asks nobody', async () => {
  const { client, asked } = reviewClient(() => ({ allowed: false }));
  await makeAuthorizer({ mode: 'AlwaysAllow', nodeName: 'n', client, clock: handClock() }).authorize(
    ada,
    wanted,
    signal,
  );
  assert.deepEqual(asked, []);
});
