/** Ids of pods with user namespaces, and the handlers that must be able to make them. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { makeHandlers } from '../../../agent/pods/actions/handlers.ts';
import { inTarget } from '../../../agent/pods/actions/target.ts';
import { freeBlock, makeUserIds, parseUserIds } from '../../../agent/pods/actions/user_ids.ts';
import { withUsers } from '../../../agent/pods/spec/container_config.ts';
import type { ContainerConfig, UserNamespace } from '../../../runtime/api.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { makeContainer, makeSandbox, time } from './objects.ts';

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'keelson-ids-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}
const users = (hostId: number, length = 65_536): UserNamespace => {
  const mapping = [{ hostId, containerId: 0, length }];
  return { mode: 'pod', uids: mapping, gids: mapping };
};

test('each pod has ids of its own, and keeps them over a restart', async (t) => {
  const root = await folder(t);
  const ids = makeUserIds(root);
  const got = await Promise.all(['a', 'b', 'c', 'a'].map((uid) => ids.of(uid)));
  assert.deepEqual(got, [users(65_536), users(131_072), users(196_608), users(65_536)]);
  const anew = makeUserIds(root);
  assert.deepEqual(await anew.of('b'), users(131_072));
  await rm(join(root, 'pods', 'a'), { recursive: true });
  assert.deepEqual(await anew.of('d'), users(65_536), 'what is free again is used again');
  // The names of kubelet's own file.
  assert.deepEqual(Object.keys(JSON.parse(await readFile(join(root, 'pods/d/userns'), 'utf8')) as object), [
    'uidMappings',
    'gidMappings',
  ]);
});

test('a damaged file is no reason to give the pod other ids', async (t) => {
  const root = await folder(t);
  await mkdir(join(root, 'pods/a'), { recursive: true });
  for (const text of [
    '',
    '{}',
    'null',
    '{"uidMappings":[{"hostId":-1,"containerId":0,"length":1}],"gidMappings":[]}',
  ]) {
    await writeFile(join(root, 'pods/a/userns'), text);
    await assert.rejects(makeUserIds(root).of('a'), /does not hold the id mappings/, text);
    assert.throws(() => parseUserIds(text, 'x'), { code: 'FAILED_PRECONDITION' });
  }
});

test('blocks that somebody has a part of are not free', () => {
  assert.equal(freeBlock([]), 1);
  assert.equal(freeBlock([users(65_536), users(196_608)]), 2);
  assert.equal(freeBlock([users(70_000)]), 3, 'it reaches into the second');
  assert.equal(freeBlock([users(0, 2 ** 32)]), undefined);
});

const config = {
  mounts: [{ containerPath: '/x', hostPath: '/y', readonly: false, propagation: 'private' }],
  linux: { security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } },
} as unknown as ContainerConfig;

test("a container has the mappings of its pod's sandbox, and its mounts too", () => {
  assert.equal(withUsers(config, undefined), config);
  assert.equal(withUsers(config, { mode: 'node', uids: [], gids: [] }), config);
  const made = withUsers(config, users(65_536));
  assert.deepEqual(made.linux.security.namespaces.user, users(65_536));
  assert.deepEqual(made.mounts[0]?.uidMappings, users(65_536).uids);
  assert.deepEqual(made.mounts[0]?.gidMappings, users(65_536).gids);
});

test('a target is found by name, unless the pod shares its processes anyway', () => {
  const main = makeContainer('new', { name: 'main' }, 'running');
  const observed = {
    sandboxes: [makeSandbox('s0')],
    containers: [main, makeContainer('old', { name: 'main' }, 'exited')],
  };
  const ephemeral = { name: 'debug', targetContainerName: 'main' };
  const { namespaces } = inTarget(config, ephemeral, observed).linux.security;
  assert.deepEqual([namespaces.pid, namespaces.targetId], ['target', 'new']);
  assert.equal(inTarget(config, { name: 'debug' }, observed), config);
  const shared = structuredClone(config) as { linux: { security: { namespaces: { pid: string } } } };
  shared.linux.security.namespaces.pid = 'pod';
  const given = shared as unknown as ContainerConfig;
  assert.equal(inTarget(given, ephemeral, observed), given);
  assert.throws(
    () => inTarget(config, { name: 'debug', targetContainerName: 'x' } as object as never, observed),
    {
      code: 'CONTAINER_CONFIG_INVALID',
      message: /unable to find target container x/,
    },
  );
});

test('the handler of a RuntimeClass is asked for once a minute, and known while nobody answers', async () => {
  let now = time;
  let answer = async (): Promise<unknown> => ({ handler: 'fast' });
  const asked: string[] = [];
  const handlers = makeHandlers({
    client: {
      get: (path: string) => {
        asked.push(path);
        return answer();
      },
    } as never,
    runtime: {
      handlers: async () => [{ name: 'fast', recursiveReadOnlyMounts: true, userNamespaces: false }],
    },
    clock: { now: () => now } as never,
  });
  const { signal } = new AbortController();
  assert.equal(await handlers.named(undefined, signal), '');
  assert.equal(await handlers.named('class', signal), 'fast');
  assert.equal(await handlers.named('class', signal), 'fast');
  assert.deepEqual(asked, ['/apis/node.k8s.io/v1/runtimeclasses/class']);
  now += 61_000;
  answer = () => Promise.reject(new KeelsonError('API_UNREACHABLE', 'gone'));
  assert.equal(await handlers.named('class', signal), 'fast');
  await assert.rejects(handlers.named('other', signal), { code: 'API_UNREACHABLE' });
  answer = () => Promise.reject(new KeelsonError('API_STATUS', 'no', { details: { status: 404 } }));
  await assert.rejects(handlers.named('class', signal), {
    code: 'NOT_FOUND',
    message: /RuntimeClass "class" not found/,
  });
  assert.equal((await handlers.features('fast'))?.userNamespaces, false);
  assert.equal(await handlers.features('slow'), undefined);
});
