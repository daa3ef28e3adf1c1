import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod } from '../../../agent/apiserver/types.ts';
import { withUsedVolumes } from '../../../agent/pods/spec/used_volumes.ts';

test('volumes that no container uses are left out', () => {
  const named = (...names: string[]) => names.map((name) => ({ name, emptyDir: {} }));
  const mounting = (name: string) => ({ name, image: 'i', volumeMounts: [{ name, mountPath: '/x' }] });
  const pod = {
    metadata: { name: 'p' },
    spec: {
      volumes: named('init', 'main', 'device', 'variables', 'debug', 'nobody'),
      initContainers: [mounting('init')],
      containers: [
        mounting('main'),
        { name: 'a', image: 'i', volumeDevices: [{ name: 'device', devicePath: '/dev/x' }] },
        {
          name: 'b',
          image: 'i',
          env: [
            { name: 'E', value: 'nobody' },
            { name: 'F', valueFrom: { fileKeyRef: { volumeName: 'variables' } } },
          ],
        },
      ],
      ephemeralContainers: [mounting('debug')],
    },
  } as unknown as Pod;
  const used = withUsedVolumes(pod);
  assert.deepEqual(
    used.spec!.volumes!.map(({ name }) => name),
    ['init', 'main', 'device', 'variables', 'debug'],
  );
  assert.equal(pod.spec!.volumes!.length, 6);
  assert.equal(withUsedVolumes(used), used);
  assert.equal(withUsedVolumes({ metadata: {} }).spec, undefined);
});
