/** Getting in: challenges, tokens, credentials, and who is never shown them. */
import assert from 'node:assert/strict';
import type { ServerResponse } from 'node:http';
import { test } from 'node:test';
import { basicOf, credentialsFor, mirrorCredentials, parseChallenges } from '../../images/registry/auth.ts';
import { describe, isError } from '../../runtime/host/errors.ts';
import { type FakeRegistry, startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage } from '../peers/image.ts';
import { openImages } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const image = buildImage({
  layers: ['one', 'two', 'three', 'four'].map((path) => ({ files: [{ path, content: path }] })),
});

test('challenges are read', () => {
  assert.deepEqual(
    parseChallenges(
      'Bearer realm="https://a.example/t?x=1,2",service="r", scope="repository:a\\"b:pull"',
    ).map((c) => ({
      scheme: c.scheme,
      parameters: { ...c.parameters },
    })),
    [
      {
        scheme: 'bearer',
        parameters: { realm: 'https://a.example/t?x=1,2', service: 'r', scope: 'repository:a"b:pull' },
      },
    ],
  );
  assert.deepEqual(
    parseChallenges('Basic realm="x", Bearer realm=y').map((c) => c.scheme),
    ['basic', 'bearer'],
  );
  assert.deepEqual(
    parseChallenges('Negotiate').map((c) => c.scheme),
    ['negotiate'],
  );
  for (const broken of ['', ',,,', '="x"', 'Bearer realm="', 'Bearer =', '"']) parseChallenges(broken);
});

test('credentials are chosen by the registry that they are for', () => {
  const own = { username: 'u', password: 'p', serverAddress: 'r.example' };
  const any = { auth: Buffer.from('u:p:q').toString('base64') };
  const other = { username: 'u', password: 'p', serverAddress: 'other.example' };
  assert.deepEqual(credentialsFor([other, own, any, {}], 'r.example'), [own, any]);
  assert.deepEqual(basicOf(any), { user: 'u', password: 'p:q' });
  assert.equal(basicOf({ auth: 'AAAA' }), undefined);
});

/** A registry that wants a token from `realm` and a token service that wants `user:secret`, or nobody for `public`. */
function requireToken(registry: FakeRegistry, service: FakeRegistry): void {
  const wanted = `Basic ${Buffer.from('user:secret').toString('base64')}`;
  service.intercept = (request, response) => {
    const { searchParams } = new URL(request.url ?? '', 'http://x');
    const scope = searchParams.get('scope') ?? '';
    if (scope !== 'repository:public:pull' && request.headers.authorization !== wanted) {
      response.writeHead(401).end('{}');
    } else {
      response
        .writeHead(200)
        .end(JSON.stringify({ token: `token-for-${scope}-${searchParams.get('service')}` }));
    }
    return true;
  };
  registry.intercept = (request, response) => {
    const repository = (request.url ?? '').split('/')[2];
    if (request.headers.authorization === `Bearer token-for-repository:${repository}:pull-me`) return false;
    const challenge = `Bearer realm="http://${service.host}/token",service="me",scope="repository:${repository}:pull"`;
    response.writeHead(401, { 'www-authenticate': challenge }).end();
    return true;
  };
}

test('tokens are fetched with credentials or as anonymous, once for a pull', { skip }, async (t) => {
  const [registry, service] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  requireToken(registry, service);
  registry.image('1', image);
  const { images } = await openImages(t);
  const pull = (name: string, auths?: object[]) =>
    images.pullImage({ image: `${registry.host}/${name}:1` }, { auths });

  await assert.rejects(pull('private'), { code: 'IMAGE_PULL_DENIED', message: /private:1/ });
  const wrong = { username: 'user', password: 'wrong-secret' };
  await assert.rejects(
    pull('private', [wrong]),
    (error) => isError(error, 'IMAGE_PULL_DENIED') && !describe(error).includes('wrong-secret'),
  );
  const elsewhere = { username: 'user', password: 'secret', serverAddress: 'other.example' };
  await assert.rejects(pull('private', [elsewhere]), { code: 'IMAGE_PULL_DENIED' });
  const asked = service.seen.length;
  assert.equal(await pull('public'), image.id);
  assert.equal(service.seen.length, asked + 1);
  await images.removeImage({ image: image.id });
  assert.equal(
    await pull('private', [wrong, { auth: Buffer.from('user:secret').toString('base64') }]),
    image.id,
  );
  assert.ok(registry.seen.every(({ authorization }) => !authorization?.startsWith('Basic')));
});

test('basic credentials are sent only after they were asked for', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  registry.intercept = (request, response) => {
    if (request.headers.authorization === `Basic ${Buffer.from('u:p').toString('base64')}`) return false;
    response.writeHead(401, { 'www-authenticate': 'Basic realm="r"' }).end();
    return true;
  };
  const { images } = await openImages(t);
  const name = { image: `${registry.host}/a:1` };
  await assert.rejects(images.pullImage(name), { code: 'IMAGE_PULL_DENIED' });
  assert.equal(await images.pullImage(name, { auths: [{ username: 'u', password: 'p' }] }), image.id);
  assert.equal(registry.seen.at(0)?.authorization, undefined);
});

test('redirects are followed without showing the token to another host', { skip }, async (t) => {
  const [registry, storage] = [await startFakeRegistry(t), await startFakeRegistry(t)];
  registry.image('1', image);
  storage.image('1', image);
  registry.intercept = (request, response) => {
    if (request.headers.authorization !== 'Bearer given') {
      response.writeHead(401, { 'www-authenticate': 'Bearer realm="x"' }).end();
      return true;
    }
    if (!request.url?.includes('/blobs/')) return false;
    response.writeHead(307, { location: `http://x:y@${storage.host}${request.url}` }).end();
    return true;
  };
  const { images } = await openImages(t);
  const id = await images.pullImage(
    { image: `${registry.host}/a:1` },
    { auths: [{ registryToken: 'given' }] },
  );
  assert.equal(id, image.id);
  assert.equal(storage.seen.length, 5);
  assert.ok(storage.seen.every(({ authorization }) => authorization === undefined));

  await images.removeImage({ image: id });
  registry.intercept = (request, response) => {
    response.writeHead(302, { location: request.url }).end();
    return true;
  };
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }), {
    code: 'REGISTRY_UNAVAILABLE',
    message: /redirects/,
  });
});

test('a mirror is shown only what names it', () => {
  const unnamed = { username: 'u', password: 'p' };
  const named = { ...unnamed, serverAddress: 'https://m.example:5000/v2/' };
  const other = { ...unnamed, serverAddress: 'm.example' };
  assert.deepEqual(
    mirrorCredentials([unnamed, named, other, { serverAddress: 'm.example:5000' }], 'm.example:5000'),
    [named],
  );
});

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

test('a token that runs out in the middle is replaced once for all layers', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  let tokens = 0;
  registry.intercept = (request, response) => {
    if (request.url?.startsWith('/token')) {
      tokens++;
      setTimeout(() => response.end(JSON.stringify({ token: `t${tokens}` })), 20);
      return true;
    }
    const isLayer = image.layers.some(({ digest }) => request.url?.endsWith(digest));
    if (request.headers.authorization === (isLayer ? 'Bearer t2' : 'Bearer t1')) return false;
    const realm = `http://${registry.host}/token`;
    response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end();
    return true;
  };
  const { images } = await openImages(t, { parallelDownloads: 4 });
  assert.equal(await images.pullImage({ image: `${registry.host}/a:1` }), image.id);
  assert.equal(tokens, 2);
});

test('a registry that never accepts its own tokens is given up', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  tokenRegistry(registry, (response) => response.end('{"token":"bad"}'));
  const { images } = await openImages(t);
  const auths = [
    { username: 'u', password: 'one-secret' },
    { username: 'u', password: 'two-secret' },
  ];
  await assert.rejects(images.pullImage({ image: `${registry.host}/a:1` }, { auths }), (error) => {
    assert.ok(isError(error, 'IMAGE_PULL_DENIED'), describe(error));
    assert.match(describe(error), /none of the given credentials is accepted/);
    assert.ok(!describe(error).includes('secret'));
    return true;
  });
  assert.equal(registry.seen.length, 7);
});

test('an identity token is posted, and sent by GET where POST is not known', { skip }, async (t) => {
  for (const refusal of [undefined, 404, 405]) {
    const registry = await startFakeRegistry(t);
    const bodies: string[] = [];
    registry.image('1', image);
    registry.intercept = (request, response) => {
      if (!request.url?.startsWith('/token')) {
        if (request.headers.authorization === 'Bearer good') return false;
        const realm = `http://${registry.host}/token`;
        response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}",service="s"` }).end();
        return true;
      }
      let body = '';
      request.on('data', (chunk: Buffer) => {
        body += chunk.toString();
      });
      request.on('end', () => {
        bodies.push(`${request.method} ${request.url} ${body}`);
        const refused = request.method === 'POST' && refusal !== undefined;
        response.writeHead(refused ? refusal : 200).end('{"access_token":"good"}');
      });
      return true;
    };
    const { images } = await openImages(t);
    await images.pullImage(
      { image: `${registry.host}/a:1` },
      { auths: [{ username: 'ignored', identityToken: 'id-secret' }] },
    );
    const scope = 'repository%3Aa%3Apull';
    const post = `POST /token grant_type=refresh_token&refresh_token=id-secret&client_id=keelson&scope=${scope}&service=s`;
    assert.deepEqual(bodies, refusal === undefined ? [post] : [post, `GET /token?service=s&scope=${scope} `]);
  }
});
