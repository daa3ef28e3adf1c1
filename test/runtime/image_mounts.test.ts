/** Images as volumes, and the volumes that images declare. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Mount } from '../../runtime/api.ts';
import { isError } from '../../runtime/host/errors.ts';
import { cannotRun, makeMachine } from './machine.ts';

const skip = cannotRun;
const image = (changes: Partial<Mount> = {}): Mount => ({
  containerPath: '/image',
  hostPath: '',
  readonly: true,
  propagation: 'private',
  image: { image: 'busybox' },
  ...changes,
});

test('an image is mounted, whole or in part, read-only, and kept as long as the container', {
  skip,
}, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(
    sandbox,
    [
      'sh',
      '-c',
      'exec 2>&1; cat /image/etc/group | head -1; ls /part; cat /file | head -1; touch /image/x; sleep 1000',
    ],
    {
      mounts: [
        image(),
        image({ containerPath: '/part', imageSubPath: 'etc', readonly: false }),
        image({ containerPath: '/file', imageSubPath: 'etc/passwd' }),
      ],
    },
  );
  while (!(await machine.logOf(id)).includes('touch')) await new Promise((resolve) => setTimeout(resolve, 5));
  const lines = (await machine.logOf(id)).split('\n').map((line) => line.split(' ').slice(3).join(' '));
  assert.deepEqual(lines.slice(0, 5), [
    'root:x:0:',
    'group',
    'passwd',
    'root:x:0:0:root:/root:/bin/sh',
    'touch: /image/x: Read-only file system',
  ]);
  const mounts = (await runtime.containerStatus(id)).mounts;
  assert.equal(mounts[1]?.imageSubPath, 'etc');
  assert.ok([...machine.leases.values()].some((holders) => holders.has(id)));
  await machine.restart();
  await machine.runtime.stopContainer(id, 0);
  await machine.runtime.removeContainer(id);
  assert.deepEqual(
    (await machine.leftovers()).filter((found) => found.startsWith('mount') && found.includes(id)),
    [],
  );
  const wrong: [Mount, string, RegExp][] = [
    [
      image({ imageSubPath: 'no/such' }),
      'CONTAINER_CREATE_FAILED',
      /^ImageVolumeMountFailed: "no\/such" is not in image/,
    ],
    [image({ imageSubPath: '../..' }), 'CONTAINER_CREATE_FAILED', /^ImageVolumeMountFailed/],
    [image({ imageSubPath: '/etc' }), 'CONTAINER_CREATE_FAILED', /^ImageVolumeMountFailed/],
    [
      image({ image: { image: 'absent' } }),
      'CONTAINER_CREATE_FAILED',
      /^ImageVolumeMountFailed: image absent/,
    ],
    [image({ hostPath: '/etc' }), 'CONTAINER_CONFIG_INVALID', /both an image and a host path/],
    [image({ propagation: 'bidirectional' }), 'CONTAINER_CONFIG_INVALID', /propagate/],
    [
      image({ image: undefined, imageSubPath: 'x', hostPath: '/etc' }),
      'CONTAINER_CONFIG_INVALID',
      /no image/,
    ],
  ];
  for (const [mount, code, why] of wrong) {
    await assert.rejects(
      machine.runtime.createContainer(
        sandbox,
        machine.containerConfig(['true'], { mounts: [image(), mount] }),
      ),
      (error) => isError(error, code as 'CONTAINER_CREATE_FAILED') && why.test(error.message),
      why.source,
    );
  }
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
  assert.equal([...machine.leases.values()].flatMap((holders) => [...holders]).length, 0);
});

test("an image's volumes can be written where the root is read-only, unless something else is mounted there", {
  skip,
}, async (t) => {
  const machine = await makeMachine(t, { Volumes: ['/data/', 'etc', '/tmp', '/../..', '/'] });
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(
    sandbox,
    [
      'sh',
      '-c',
      'exec 2>&1; touch /x; touch /data/x && ls /data; echo more >> /etc/group && tail -1 /etc/group; touch /tmp/x',
    ],
    {
      mounts: [{ containerPath: '/tmp', hostPath: machine.logs, readonly: true, propagation: 'private' }],
      linux: { security: { readonlyRootfs: true } },
    },
  );
  await machine.exited(id);
  const lines = (await machine.logOf(id)).split('\n').map((line) => line.split(' ').slice(3).join(' '));
  assert.deepEqual(lines.slice(0, 4), [
    'touch: /x: Read-only file system',
    'x',
    'more',
    'touch: /tmp/x: Read-only file system',
  ]);
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});
