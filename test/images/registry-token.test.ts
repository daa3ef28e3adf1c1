/** Token services and challenges that do wrong, and registries that are busy. */
import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { type TestContext, test } from 'node:test';
import { openRepository } from '../../images/registry/repository.ts';
import { tokenOf } from '../../images/registry/token.ts';
import type { AuthConfig } from '../../runtime/api.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { describe, type ErrorCode, isError } from '../../runtime/host/errors.ts';
import { type FakeRegistry, startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage } from '../peers/image.ts';
import { openRegistries } from '../peers/image-store.ts';

const image = buildImage({ layers: [{ files: [{ path: 'one', content: 'x' }] }] });

/** A registry as pulls see it, without a store; waits are over at once, and remembered. */
function impatient(t: TestContext) {
  const waits: number[] = [];
  const after = (ms: number, callback: () => void) => {
    waits.push(ms);
    setImmediate(callback);
    return () => {};
  };
  const shared = openRegistries(t, { ...systemClock, after });
  const resolve = async (host: string, path = 'a', auths: readonly AuthConfig[] = []) => {
    const repository = await openRepository(shared, host, path, auths);
    const { bytes } = await repository.manifest('1');
    const { digest, data } = image.config;
    await repository.document({ digest, size: data.length, mediaType: '' });
    return bytes;
  };
  return { resolve, waits };
}

/** Wants the token that `give` hands out last, and answers /token with it. */
function tokenRegistry(registry: FakeRegistry, answer: (response: ServerResponse, count: number) => void) {
  registry.image('1', image);
  registry.intercept = (request, response) => {
    if (request.url?.startsWith('/token')) {
      answer(response, registry.seen.filter(({ path }) => path.startsWith('/token')).length);
      return true;
    }
    if (request.headers.authorization === 'Bearer good') return false;
    const realm = `http://${registry.host}/token`;
    response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="s"` }).end();
    return true;
  };
}

const bad: readonly (readonly [name: string, (response: ServerResponse) => void, ErrorCode, RegExp])[] = [
  ['refuses', (response) => response.writeHead(403).end(), 'IMAGE_PULL_DENIED', /refused access/],
  ['is not there', (response) => response.writeHead(404).end(), 'REGISTRY_UNAVAILABLE', /answered 404/],
  ['gives a page', (response) => response.end('<html>secret'), 'REGISTRY_UNAVAILABLE', /gave no token/],
  ['gives a list', (response) => response.end('["secret"]'), 'REGISTRY_UNAVAILABLE', /gave no token/],
  ['gives a number', (response) => response.end('{"token":5}'), 'REGISTRY_UNAVAILABLE', /gave no token/],
  ['gives nothing', (response) => response.end('{"token":""}'), 'REGISTRY_UNAVAILABLE', /gave no token/],
  [
    'gives a header of its own',
    (response) => response.end(JSON.stringify({ token: 'secret\r\nx-y: z' })),
    'IMAGE_PULL_DENIED',
    /refused access/,
  ],
  [
    'does not end',
    (response) => {
      const more = () => !response.destroyed && response.write('x'.repeat(1 << 16), () => setImmediate(more));
      more();
    },
    'IMAGE_INVALID',
    /more than 1048576 bytes/,
  ],
  [
    'breaks off',
    (response) => {
      response.writeHead(200, { 'content-length': 1000 });
      response.write('{"token":"secret', () => response.destroy());
    },
    'REGISTRY_UNAVAILABLE',
    /cannot be reached/,
  ],
];

test('a token service that does wrong is named, and nothing that it said', async (t) => {
  for (const [name, answer, code, message] of bad) {
    const registry = await startFakeRegistry(t);
    tokenRegistry(registry, answer);
    const { resolve } = impatient(t);
    await assert.rejects(
      resolve(registry.host, 'some/repo'),
      (error) => {
        const text = describe(error);
        assert.ok(isError(error, code), `${name}: ${text}`);
        assert.match(text, message, name);
        assert.ok(text.includes(`${registry.host}/some/repo:1`), text);
        assert.ok(!text.includes('secret'), text);
        return true;
      },
      name,
    );
    assert.ok(registry.seen.length <= 12, `${name}: ${registry.seen.length} requests`);
  }
});

test('a challenge that leads nowhere is an error', async (t) => {
  const registry = await startFakeRegistry(t);
  const { resolve } = impatient(t);
  const pull = (challenge: string | undefined, auths: AuthConfig[] = []) => {
    registry.intercept = (_, response) => {
      response.writeHead(401, challenge === undefined ? {} : { 'www-authenticate': challenge }).end();
      return true;
    };
    return resolve(registry.host, 'a', auths);
  };
  const auths = [{ username: 'u', password: 'p-secret' }];
  for (const challenge of [undefined, '', 'Negotiate', 'Basic', '=,"']) {
    await assert.rejects(pull(challenge, auths), { code: 'IMAGE_PULL_DENIED' }, challenge);
  }
  for (const realm of ['', 'file:///etc/passwd', 'relative', 'ftp://x']) {
    await assert.rejects(pull(`Bearer realm="${realm}"`, auths), {
      code: 'REGISTRY_UNAVAILABLE',
      message: /names no usable token service/,
    });
  }
});

test('a registry that is busy is asked again when it says, and not for ever', async (t) => {
  const registry = await startFakeRegistry(t);
  tokenRegistry(registry, (response, count) => {
    if (count === 1) response.writeHead(429, { 'retry-after': '7' }).end();
    else response.end('{"token":"good"}');
  });
  const { resolve, waits } = impatient(t);
  await resolve(registry.host);
  assert.ok(
    waits.some((ms) => ms >= 7000 && ms < 8000),
    String(waits),
  );

  registry.intercept = (_, response) => {
    response.writeHead(429, { 'retry-after': '3600' }).end();
    return true;
  };
  const before = registry.seen.length;
  await assert.rejects(resolve(registry.host), (error) => {
    assert.ok(isError(error, 'REGISTRY_UNAVAILABLE'), describe(error));
    assert.match(describe(error), /answered 429.*limits how often/);
    return true;
  });
  assert.equal(registry.seen.length, before + 1);
  registry.intercept = (_, response) => {
    response.writeHead(503, { 'retry-after': new Date(Date.now() + 10_000).toUTCString() }).end();
    return true;
  };
  await assert.rejects(resolve(registry.host), { code: 'REGISTRY_UNAVAILABLE' });
  assert.equal(registry.seen.length, before + 5);
  assert.ok(waits.filter((ms) => ms > 8500).length === 3, String(waits));
});

test('the host that a registry redirects to cannot ask for credentials', async (t) => {
  const [registry, storage] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  registry.image('1', image);
  registry.intercept = (request, response) => {
    if (!request.url?.includes('/blobs/')) return false;
    response.writeHead(307, { location: `http://${storage.host}/x?sig=secret` }).end();
    return true;
  };
  storage.intercept = (_, response) => {
    response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${storage.host}/token"` }).end();
    return true;
  };
  const { resolve } = impatient(t);
  const auths = [{ username: 'u', password: 'p-secret' }];
  await assert.rejects(resolve(registry.host, 'a', auths), (error) => {
    const text = describe(error);
    assert.ok(isError(error, 'REGISTRY_UNAVAILABLE'), text);
    assert.match(text, new RegExp(`answered 401 at http://${storage.host}/x,`));
    assert.ok(!text.includes('secret'), text);
    return true;
  });
  assert.ok(storage.seen.every(({ authorization }) => authorization === undefined));

  // A front that leads to a registry with tokens of its own, which anybody gets.
  storage.intercept = (request, response) => {
    if (request.headers.authorization === 'Bearer for-anybody') response.end(image.config.data);
    else if (request.url?.startsWith('/token')) response.end('{"token":"for-anybody"}');
    else response.writeHead(401, { 'www-authenticate': `Bearer realm="http://${storage.host}/token"` }).end();
    return true;
  };
  await resolve(registry.host, 'a', auths);
  assert.ok(storage.seen.every(({ authorization }) => authorization !== `Basic ${btoa('u:p-secret')}`));
  assert.ok(registry.seen.every(({ authorization }) => authorization === undefined));
});

test('a token is read from either field', () => {
  const read = (json: unknown) => tokenOf(Buffer.from(JSON.stringify(json)));
  assert.equal(read({ token: 'a', access_token: 'b' }), 'a');
  assert.equal(read({ access_token: 'b' }), 'b');
  assert.equal(read({ token: '', access_token: 'b' }), 'b');
  for (const json of [{}, null, 5, [], { token: null }, { token: { a: 1 } }])
    assert.equal(read(json), undefined);
  assert.equal(tokenOf(Buffer.from('{')), undefined);
});
