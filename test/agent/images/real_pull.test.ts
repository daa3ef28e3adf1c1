/** The agent's side with the real image store, and a registry that asks for a password. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { type TestContext, test } from 'node:test';
import type { Secret } from '../../../agent/apiserver/types.ts';
import { makeImageAccess } from '../../../agent/images/access.ts';
import { noRegistryAnswered } from '../../../agent/images/failures.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { startFakeRegistry } from '../../peers/fake-registry.ts';
import { buildImage } from '../../peers/image.ts';
import { openImages, temporaryFolder } from '../../peers/image-store.ts';
import { fakeObjects } from '../volumes/cluster.ts';

const pod = { namespace: 'n', name: 'web', uid: 'u', serviceAccount: '' };
const { signal } = new AbortController();

async function open(t: TestContext) {
  const { images } = await openImages(t);
  const objects = fakeObjects();
  const access = await makeImageAccess({
    images,
    objects,
    client: undefined,
    clock: systemClock,
    log: makeLogger('silent'),
    kubeletDir: temporaryFolder(t),
    nodeConfigFiles: [],
    verification: 'NeverVerifyPreloadedImages',
    allowlist: [],
    qps: 0,
    burst: 1,
    parallelPulls: undefined,
    pullAlwaysFallback: false,
    providers: undefined,
  });
  t.after(() => access.close());
  return { images, objects, access };
}

test('the right one of several secrets, with a glob, pulls; without it the image is not to be had', async (t) => {
  const registry = await startFakeRegistry(t);
  const wanted = `Basic ${Buffer.from('me:right').toString('base64')}`;
  registry.intercept = (request, response) => {
    if (request.headers.authorization === wanted) return false;
    response.writeHead(401, { 'www-authenticate': 'Basic realm="test"' }).end();
    return true;
  };
  registry.image('1', buildImage({ layers: [{ files: [{ path: 'file', content: 'hello' }] }] }));
  const image = `${registry.host}/team/app:1`;
  const { images, objects, access } = await open(t);
  const put = (name: string, address: string, password: string) => {
    const auths = { [address]: { auth: Buffer.from(`me:${password}`).toString('base64') } };
    objects.secrets.set(`n/${name}`, {
      metadata: { name, namespace: 'n', uid: `uid-${name}` },
      type: 'kubernetes.io/dockerconfigjson',
      data: { '.dockerconfigjson': Buffer.from(JSON.stringify({ auths })).toString('base64') },
    } as Secret);
  };
  put('wrong', `http://${registry.host}/team`, 'wrong');
  put('right', `127.0.0.*:${registry.host.split(':')[1]}`, 'right');
  put('elsewhere', 'reg.example', 'right');
  const of = async (...pullSecrets: string[]) =>
    (await access.credentials(image, { ...pod, pullSecrets }, signal)).credentials;

  const denied = access.pull(image, await of('wrong', 'elsewhere'), signal);
  await assert.rejects(denied, (error) => isError(error, 'IMAGE_PULL_DENIED'));
  assert.equal(await images.imageStatus({ image }), undefined);
  const { id } = await access.pull(image, await of('wrong', 'right'), signal);
  assert.equal((await images.imageStatus({ image }))?.id, id);
  assert.equal(await access.mustPull(image, id, () => of('right')), false);
  assert.equal(await access.mustPull(image, id, () => of('wrong')), true);
  const again = access.pull(image, await of('wrong'), signal);
  await assert.rejects(again, (error) => isError(error, 'IMAGE_PULL_DENIED'));
});

test('a registry that is not there is one that nobody answers for; one that answers nonsense is not', async (t) => {
  const { access } = await open(t);
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  await assert.rejects(access.pull(`127.0.0.1:${port}/app:1`, [], signal), noRegistryAnswered);
  const registry = await startFakeRegistry(t);
  registry.intercept = (_, response) => {
    response.writeHead(503).end();
    return true;
  };
  await assert.rejects(
    access.pull(`${registry.host}/app:1`, [], signal),
    (error) => isError(error, 'REGISTRY_UNAVAILABLE') && !noRegistryAnswered(error),
  );
});
