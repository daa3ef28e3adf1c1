import assert from 'node:assert/strict';
import { test } from 'node:test';
import { containerForLogs } from '../../../agent/api/log-container.ts';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { isError } from '../../../runtime/host/errors.ts';

const terminated = (containerID?: string) => ({ terminated: { exitCode: 0, containerID } });
const pod = (status?: object): Pod =>
  ({
    metadata: { name: 'web' },
    spec: {
      containers: [{ name: 'app' }],
      initContainers: [{ name: 'init' }],
      ephemeralContainers: [{ name: 'debug' }],
    },
    status: status === undefined ? undefined : { containerStatuses: [{ name: 'app', ...status }] },
  }) as Pod;

for (const [name, status, previous, wanted] of [
  ['it runs', { state: { running: {} }, containerID: 'keelson://a1' }, false, 'a1'],
  ['an id without scheme', { state: { running: {} }, containerID: 'a1' }, false, 'a1'],
  ['it has ended', { state: terminated('keelson://a1') }, false, 'a1'],
  ['the next one never started', { state: terminated(), lastState: terminated('keelson://a0') }, false, 'a0'],
  [
    'it waits for a restart',
    { state: { waiting: { reason: 'CrashLoopBackOff' } }, lastState: terminated('keelson://a0') },
    false,
    'a0',
  ],
  [
    'the one before',
    { state: { running: {} }, containerID: 'keelson://a1', lastState: terminated('keelson://a0') },
    true,
    'a0',
  ],
] as const) {
  test(`found: ${name}`, () => assert.equal(containerForLogs(pod(status), 'web', 'app', previous), wanted));
}

test('init and ephemeral containers are found', () => {
  const one = (name: string) => ({ name, state: { running: {} }, containerID: `keelson://${name}` });
  const full = {
    ...pod(),
    status: { initContainerStatuses: [one('init')], ephemeralContainerStatuses: [one('debug')] },
  };
  assert.equal(containerForLogs(full as unknown as Pod, 'web', 'init', false), 'init');
  assert.equal(containerForLogs(full as unknown as Pod, 'web', 'debug', false), 'debug');
});

const waiting = (reason?: string) => pod({ state: { waiting: { reason } } });
for (const [name, of, container, previous, code, message] of [
  ['no pod', undefined, 'app', false, 'NOT_FOUND', 'pod "web" does not exist'],
  ['no such container', pod({}), 'other', false, 'NOT_FOUND', 'container "other" not found in pod "web"'],
  [
    'no status yet',
    pod(),
    'app',
    false,
    'FAILED_PRECONDITION',
    'container "app" in pod "web" is not available',
  ],
  [
    'none before',
    pod({ state: { running: {} }, containerID: 'k://a' }),
    'app',
    true,
    'FAILED_PRECONDITION',
    'previous terminated container "app" in pod "web" not found',
  ],
  [
    'creating',
    waiting('ContainerCreating'),
    'app',
    false,
    'FAILED_PRECONDITION',
    'container "app" in pod "web" is waiting to start: ContainerCreating',
  ],
  [
    'pull failed',
    waiting('ErrImagePull'),
    'app',
    false,
    'FAILED_PRECONDITION',
    'container "app" in pod "web" is waiting to start: image can\'t be pulled',
  ],
  [
    'pull again',
    waiting('ImagePullBackOff'),
    'app',
    false,
    'FAILED_PRECONDITION',
    'container "app" in pod "web" is waiting to start: trying and failing to pull image',
  ],
  [
    'ended without one',
    pod({ state: terminated() }),
    'app',
    false,
    'FAILED_PRECONDITION',
    'container "app" in pod "web" is terminated',
  ],
  [
    'no state',
    pod({}),
    'app',
    false,
    'FAILED_PRECONDITION',
    'container "app" in pod "web" is waiting to start - no logs yet',
  ],
] as const) {
  test(`kubelet's words: ${name}`, () =>
    assert.throws(
      () => containerForLogs(of, 'web', container, previous),
      (error) => isError(error, code) && error.message === message,
    ));
}
