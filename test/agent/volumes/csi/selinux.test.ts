import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { CsiVolume } from '../../../../agent/volumes/csi/decide.ts';
import { fileContext, mountLabel, withLabel } from '../../../../agent/volumes/kinds/selinux.ts';
import { isError } from '../../../../runtime/host/errors.ts';
import { persistent } from './example.ts';

const base = 'system_u:object_r:container_file_t:s0';
const volume: CsiVolume = { ...persistent, accessModes: ['ReadWriteMany'] };
const driver = { spec: { seLinuxMount: true } };
const mounts = (seLinuxOptions?: object, more: object = {}, name = 'v') => ({
  name: 'c',
  volumeMounts: [{ name, mountPath: '/v' }],
  securityContext: { ...(seLinuxOptions === undefined ? {} : { seLinuxOptions }), ...more },
});

test('a volume is mounted with the label that all its containers have', () => {
  const label = (
    containers: object[],
    ofPod: object = {},
    one = volume,
    object: object | undefined = driver,
  ) =>
    mountLabel(
      { spec: { containers: containers as never, securityContext: ofPod } },
      'v',
      one,
      object as typeof driver | undefined,
      base,
    );
  const level = { level: 's0:c1,c2' };
  const full = 'system_u:object_r:container_file_t:s0:c1,c2';
  assert.equal(label([mounts(level)]), full);
  assert.equal(label([mounts()], { seLinuxOptions: level }), full);
  assert.equal(label([mounts(level), mounts()], { seLinuxOptions: level }), full);
  assert.equal(
    label([mounts({ ...level, user: 'own_u', role: 'own_r', type: 'own_t' })]),
    'own_u:object_r:container_file_t:s0:c1,c2',
    'role and type are those of files',
  );
  assert.equal(
    label([mounts(level), mounts({ level: 's0:c3' }, {}, 'other')]),
    full,
    'who does not mount it',
  );
  assert.equal(label([mounts(level), mounts()]), full, 'who has no options');
  const none = [
    label([mounts()]),
    label([mounts({ type: 'own_t' })]),
    label([mounts(level)], { seLinuxChangePolicy: 'Recursive' }),
    label([mounts(level)], {}, { ...volume, mode: 'Ephemeral' }),
    label([mounts(level)], {}, { ...volume, block: true }),
    label([mounts(level)], {}, volume, { spec: {} }),
    label([mounts(level)], {}, volume, { spec: { seLinuxMount: false } }),
    mountLabel({ spec: { containers: [mounts(level)] as never } }, 'v', volume, undefined, base),
    mountLabel({ spec: { containers: [mounts(level)] as never } }, 'v', volume, driver, undefined),
  ];
  assert.deepEqual(none, Array(none.length).fill(undefined));
  assert.throws(
    () => label([mounts(level), mounts({ level: 's0:c3' })]),
    (error) => isError(error, 'VOLUME_FAILED') && error.message.startsWith('multiple SELinux labels found: '),
  );
});

test('the label is an option of the mount', () => {
  assert.deepEqual(withLabel(volume, 'a:b:c:s0:c1,c2').mountOptions, ['noatime', 'context="a:b:c:s0:c1,c2"']);
  assert.equal(withLabel(volume, undefined), volume);
});

test('what files of containers are labelled with, is of the host', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-selinux-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  assert.equal(await fileContext(root), undefined);
  await mkdir(join(root, 'sys/fs/selinux'), { recursive: true });
  await writeFile(join(root, 'sys/fs/selinux/enforce'), '1');
  assert.equal(await fileContext(root), base);
  await mkdir(join(root, 'etc/selinux/mls/contexts'), { recursive: true });
  await writeFile(join(root, 'etc/selinux/config'), 'SELINUX=enforcing\nSELINUXTYPE=mls\n');
  await writeFile(join(root, 'etc/selinux/mls/contexts/lxc_contexts'), 'process = "p"\nfile = "u:r:t:s0"\n');
  assert.equal(await fileContext(root), 'u:r:t:s0');
});
