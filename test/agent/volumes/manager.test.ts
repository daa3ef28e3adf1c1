import assert from 'node:assert/strict';
import {
  chmod,
  lstat,
  mkdir,
  readdir,
  readFile,
  readlink,
  stat,
  statfs,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Volume } from '../../../agent/apiserver/types.ts';
import { mountsBelow } from '../../../agent/volumes/mounts.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { mount, mountFlags } from '../../../runtime/host/syscalls.ts';
import { apiAccess, asRoot, bench, podOf, scratch, unreachable } from './cluster.ts';

const tmpfsMagic = 0x01021994;
const base64 = (text: string) => Buffer.from(text).toString('base64');
const mode = async (path: string) => (await stat(path)).mode & 0o7777;
const skip = asRoot;

test('the volume that every pod has', { skip }, async (t) => {
  const { volumes, client, at } = await bench(t);
  const pod = podOf({ volumes: [apiAccess] });
  const ready = await volumes.setUp(pod);
  const folder = at('uid-1', 'projected', 'kube-api-access');
  assert.deepEqual(
    [...ready],
    [['kube-api-access', { name: 'kube-api-access', hostPath: folder, readOnly: true }]],
  );
  assert.equal(await readFile(join(folder, 'ca.crt'), 'utf8'), 'CERTIFICATE');
  assert.equal(await readFile(join(folder, 'namespace'), 'utf8'), 'ns');
  assert.equal((await readFile(join(folder, 'token'), 'utf8')).split('.').length, 3);
  assert.equal(await mode(join(folder, 'token')), 0o644);
  assert.equal(await readlink(join(folder, 'token')), '..data/token');
  assert.equal((await statfs(folder)).type, tmpfsMagic);
  assert.deepEqual(client.calls, [
    {
      path: '/api/v1/namespaces/ns/serviceaccounts/robot/token',
      spec: {
        audiences: [],
        expirationSeconds: 3607,
        boundObjectRef: { apiVersion: 'v1', kind: 'Pod', name: 'web', uid: 'uid-1' },
      },
    },
  ]);
});

test('setting up again changes nothing and asks for nothing', { skip }, async (t) => {
  const { volumes, client, at, kubeletDir } = await bench(t);
  const pod = podOf({ volumes: [apiAccess, { name: 'scratch', emptyDir: {} }] });
  await volumes.setUp(pod);
  const data = await readlink(join(at('uid-1', 'projected', 'kube-api-access'), '..data'));
  await Promise.all([volumes.setUp(pod), volumes.setUp(pod)]);
  assert.equal(await readlink(join(at('uid-1', 'projected', 'kube-api-access'), '..data')), data);
  assert.equal(client.calls.length, 1);
  assert.equal((await mountsBelow(kubeletDir)).length, 1);
});

test('tear down leaves nothing, also when nothing was there', { skip }, async (t) => {
  const { volumes, kubeletDir } = await bench(t);
  const pod = podOf({
    volumes: [apiAccess, { name: 'd', emptyDir: {} }, { name: 'm', emptyDir: { medium: 'Memory' } }],
  });
  await volumes.setUp(pod);
  assert.deepEqual(await volumes.podsOnDisk(), ['uid-1']);
  await volumes.tearDown('uid-1');
  assert.deepEqual(await volumes.podsOnDisk(), []);
  assert.deepEqual(await mountsBelow(kubeletDir), []);
  assert.deepEqual(await readdir(join(kubeletDir, 'pods')), []);
  await volumes.tearDown('uid-1');
  assert.equal(volumes.refreshAfterMs(pod), undefined);
});

test('emptyDir on disk: mode, group, and what containers made of it stays', { skip }, async (t) => {
  const { volumes, restart, at } = await bench(t);
  const folder = at('uid-1', 'empty-dir', 'd');
  const pod = podOf({ volumes: [{ name: 'd' }] });
  const ready = await volumes.setUp(pod);
  assert.deepEqual(ready.get('d'), { name: 'd', hostPath: folder, readOnly: false });
  assert.equal(await mode(folder), 0o777);
  await writeFile(join(folder, 'kept'), '');
  await chmod(folder, 0o700);
  await restart().setUp(pod);
  assert.equal(await mode(folder), 0o700);
  assert.deepEqual(await readdir(folder), ['kept']);

  const grouped = podOf(
    { volumes: [{ name: 'd', emptyDir: {} }], securityContext: { fsGroup: 2000 } },
    'uid-2',
  );
  await volumes.setUp(grouped);
  assert.equal(await mode(at('uid-2', 'empty-dir', 'd')), 0o2777);
  assert.equal((await stat(at('uid-2', 'empty-dir', 'd'))).gid, 2000);
});

test('emptyDir in memory has its size, mode and group', { skip }, async (t) => {
  const { volumes, at } = await bench(t);
  const source = { medium: 'Memory', sizeLimit: '1Mi' };
  await volumes.setUp(
    podOf({ volumes: [{ name: 'm', emptyDir: source }], securityContext: { fsGroup: 2000 } }),
  );
  const folder = at('uid-1', 'empty-dir', 'm');
  const { type, blocks, bsize } = await statfs(folder);
  assert.equal(type, tmpfsMagic);
  assert.equal(blocks * bsize, 1 << 20);
  assert.equal(await mode(folder), 0o3777);
  assert.equal((await stat(folder)).gid, 2000);
  await assert.rejects(
    volumes.setUp(podOf({ volumes: [{ name: 'x', emptyDir: { medium: 'Tape' } }] }, 'uid-2')),
    /unknown storage medium "Tape"/,
  );
});

test('what no container uses is not set up, and may be missing', { skip }, async (t) => {
  const { volumes } = await bench(t);
  const main = {
    name: 'main',
    image: 'i',
    volumeMounts: [{ name: 'd', mountPath: '/d' }],
    volumeDevices: [{ name: 'e', devicePath: '/dev/e' }],
  };
  const own = ['d', 'e', 'idle', 'late'].map((name) => ({ name, emptyDir: {} }));
  const all = [...own, { name: 'none', configMap: { name: 'none' } }];
  const pod = podOf({ volumes: all, containers: [main] });
  assert.deepEqual([...(await volumes.setUp(pod)).keys()], ['d', 'e']);
  const debug = { name: 'debug', image: 'i', volumeMounts: [{ name: 'late', mountPath: '/l' }] };
  const later = podOf({ volumes: all, containers: [main], ephemeralContainers: [debug] });
  assert.deepEqual([...(await volumes.setUp(later)).keys()], ['d', 'e', 'late']);
});

test('a half-made emptyDir of a crashed process is finished', { skip }, async (t) => {
  const { volumes, at } = await bench(t);
  await mkdir(join(at('uid-1', 'empty-dir', '.'), '.keelson-tmp-d', 'x'), { recursive: true });
  await volumes.setUp(podOf({ volumes: [{ name: 'd', emptyDir: {} }] }));
  assert.deepEqual(await readdir(at('uid-1', 'empty-dir', '.')), ['d']);
});

test('configMap and secret: items, modes, binary data, an update', { skip }, async (t) => {
  const { volumes, objects, at, clock } = await bench(t);
  objects.configmaps.set('ns/c', {
    data: { a: '1', b: '2' },
    binaryData: { bin: Buffer.from([0, 255]).toString('base64') },
  });
  objects.secrets.set('ns/s', { data: { key: base64('geheim') } });
  const pod = podOf({
    volumes: [
      { name: 'all', configMap: { name: 'c' } },
      {
        name: 'some',
        configMap: {
          name: 'c',
          defaultMode: 0o400,
          items: [
            { key: 'a', path: 'x/y/a', mode: 0o755 },
            { key: 'b', path: 'b' },
          ],
        },
      },
      { name: 's', secret: { secretName: 's', defaultMode: 0o440 } },
    ],
  });
  await volumes.setUp(pod);
  const all = at('uid-1', 'configmap', 'all');
  assert.deepEqual((await readdir(all)).filter((name) => !name.startsWith('..')).sort(), ['a', 'b', 'bin']);
  assert.deepEqual([...(await readFile(join(all, 'bin')))], [0, 255]);
  assert.equal(await mode(join(at('uid-1', 'configmap', 'some'), 'x/y/a')), 0o755);
  assert.equal(await mode(join(at('uid-1', 'configmap', 'some'), 'b')), 0o400);
  assert.equal(await readFile(join(at('uid-1', 'secret', 's'), 'key'), 'utf8'), 'geheim');
  assert.equal(await mode(join(at('uid-1', 'secret', 's'), 'key')), 0o440);
  assert.equal((await statfs(at('uid-1', 'secret', 's'))).type, tmpfsMagic);

  objects.configmaps.set('ns/c', { data: { b: 'new', c: '3' } });
  assert.equal(volumes.refreshAfterMs(pod), 60_000);
  clock.advance(60_000);
  assert.equal(volumes.refreshAfterMs(pod), 0);
  const partial = podOf({ volumes: [pod.spec!.volumes![0]!] });
  await volumes.setUp(partial);
  assert.deepEqual((await readdir(all)).filter((name) => !name.startsWith('..')).sort(), ['b', 'c']);
  assert.equal(await readFile(join(all, 'b'), 'utf8'), 'new');
});

test('a pod of immutable objects need not be looked at again', { skip }, async (t) => {
  const { volumes, objects } = await bench(t);
  objects.configmaps.set('ns/c', { immutable: true, data: { a: '1' } });
  const pod = podOf({
    volumes: [
      { name: 'c', configMap: { name: 'c' } },
      { name: 'd', emptyDir: {} },
    ],
  });
  await volumes.setUp(pod);
  assert.equal(volumes.refreshAfterMs(pod), undefined);
});

test('downward API files', { skip }, async (t) => {
  const { volumes, at } = await bench(t);
  await volumes.setUp(
    podOf({
      volumes: [
        {
          name: 'facts',
          downwardAPI: {
            items: [
              { path: 'labels', fieldRef: { fieldPath: 'metadata.labels' } },
              {
                path: 'cpu',
                mode: 0o400,
                resourceFieldRef: { containerName: 'main', resource: 'limits.cpu' },
              },
            ],
          },
        },
      ],
    }),
  );
  const folder = at('uid-1', 'downward-api', 'facts');
  assert.equal(await readFile(join(folder, 'labels'), 'utf8'), 'app="web"');
  assert.equal(await readFile(join(folder, 'cpu'), 'utf8'), '4');
  assert.equal(await mode(join(folder, 'cpu')), 0o400);
});

test('what is missing fails with the words of kubelet; optional things may be missing', {
  skip,
}, async (t) => {
  const { volumes, objects } = await bench(t);
  objects.configmaps.set('ns/c', { data: { a: '1' } });
  const cases: readonly [Volume, RegExp][] = [
    [
      { name: 'v', configMap: { name: 'none' } },
      /^MountVolume\.SetUp failed for volume "v" : configmap "none" not found/,
    ],
    [{ name: 'v', secret: { secretName: 'none' } }, /: secret "none" not found/],
    [
      { name: 'v', configMap: { name: 'c', items: [{ key: 'z', path: 'z' }] } },
      /references non-existent config key: z/,
    ],
    [{ name: 'v', configMap: { name: 'c', items: [{ key: 'a', path: '../a' }] } }, /must not contain '\.\.'/],
    [
      { name: 'v', downwardAPI: { items: [{ path: 'x', fieldRef: { fieldPath: 'spec.nodeName' } }] } },
      /unsupported fieldPath/,
    ],
    [{ name: 'v', gcePersistentDisk: { pdName: 'x' } }, /does not support gcePersistentDisk volumes/],
    [{ name: 'v', iscsi: { targetPortal: 's', iqn: 'i', lun: 0 } }, /does not support iscsi volumes/],
    [
      { name: 'v', projected: { sources: [{ somethingNew: { keyPath: 'x' } } as object] } },
      /somethingNew are not supported/,
    ],
  ];
  for (const [volume, message] of cases) {
    await assert.rejects(
      volumes.setUp(podOf({ volumes: [{ name: 'fine', emptyDir: {} }, volume] })),
      (error) => {
        assert.ok(isError(error, 'VOLUME_FAILED'));
        assert.match(error.message, message);
        assert.deepEqual(error.details['volumes'], ['v']);
        return true;
      },
    );
  }
  await volumes.setUp(
    podOf(
      {
        volumes: [
          { name: 'c', configMap: { name: 'none', optional: true } },
          { name: 's', secret: { secretName: 'none', optional: true } },
          { name: 'k', configMap: { name: 'c', optional: true, items: [{ key: 'z', path: 'z' }] } },
        ],
      },
      'uid-2',
    ),
  );
});

test('once written, a volume outlives the apiserver', { skip }, async (t) => {
  const { volumes, objects, client, clock, at, warnings } = await bench(t);
  objects.configmaps.set('ns/c', { data: { a: '1' } });
  const pod = podOf({ volumes: [apiAccess, { name: 'c', configMap: { name: 'c' } }] });
  await volumes.setUp(pod);
  const token = await readFile(join(at('uid-1', 'projected', 'kube-api-access'), 'token'), 'utf8');
  objects.failure = unreachable;
  client.failure = unreachable;
  clock.advance(100 * 3_600_000);
  assert.equal((await volumes.setUp(pod)).size, 2);
  assert.equal(await readFile(join(at('uid-1', 'projected', 'kube-api-access'), 'token'), 'utf8'), token);
  assert.equal(await readFile(join(at('uid-1', 'configmap', 'c'), 'a'), 'utf8'), '1');
  assert.ok(warnings.length > 0);
  assert.ok(volumes.refreshAfterMs(pod)! > 0);
  await assert.rejects(volumes.setUp(podOf({ volumes: [apiAccess] }, 'uid-2')), /connection refused/);
});

test('a new process takes over the tokens that are in the volumes', { skip }, async (t) => {
  const { volumes, restart, client, clock, at } = await bench(t);
  const pod = podOf({ volumes: [apiAccess] });
  const file = join(at('uid-1', 'projected', 'kube-api-access'), 'token');
  await volumes.setUp(pod);
  const token = await readFile(file, 'utf8');
  const next = restart();
  await next.setUp(pod);
  assert.equal(client.calls.length, 1);
  assert.equal(await readFile(file, 'utf8'), token);
  clock.advance(0.8 * 3_607_000 + 1000);
  await next.setUp(pod);
  assert.equal(client.calls.length, 2);
  assert.notEqual(await readFile(file, 'utf8'), token);
});

test('a token belongs to the one user of the pod, or to its group', { skip }, async (t) => {
  const { volumes, at } = await bench(t);
  const token = (uid: string) => join(at(uid, 'projected', 'kube-api-access'), 'token');
  const user = (runAsUser: number) => ({ name: `u${runAsUser}`, image: 'i', securityContext: { runAsUser } });
  await volumes.setUp(podOf({ volumes: [apiAccess], containers: [user(1000)] }, 'one'));
  assert.deepEqual([(await stat(token('one'))).uid, await mode(token('one'))], [1000, 0o600]);
  await volumes.setUp(podOf({ volumes: [apiAccess], securityContext: { runAsUser: 7 } }, 'pod'));
  assert.deepEqual([(await stat(token('pod'))).uid, await mode(token('pod'))], [7, 0o600]);
  await volumes.setUp(podOf({ volumes: [apiAccess], containers: [user(1000), user(1001)] }, 'two'));
  assert.deepEqual([(await stat(token('two'))).uid, await mode(token('two'))], [0, 0o644]);
  await volumes.setUp(podOf({ volumes: [apiAccess], securityContext: { fsGroup: 2000 } }, 'group'));
  const facts = await stat(token('group'));
  assert.deepEqual([facts.uid, facts.gid, facts.mode & 0o7777], [0, 2000, 0o640]);
  const folder = await stat(at('group', 'projected', 'kube-api-access'));
  assert.equal(folder.gid, 2000);
  assert.ok(folder.mode & 0o2000, 'setgid');
  assert.equal((await lstat(token('group'))).gid, 2000);
});

test('hostPath: every type', { skip }, async (t) => {
  const { volumes } = await bench(t);
  const folder = await scratch(t);
  const at = (name: string) => join(folder, name);
  await mkdir(at('dir'));
  await writeFile(at('file'), '');
  await symlink(at('dir'), at('link'));
  const server = createServer().listen(at('socket'));
  t.after(() => server.close());
  const set = (path: string, type?: string) =>
    volumes.setUp(podOf({ volumes: [{ name: 'h', hostPath: { path, type } }] }));
  for (const [path, type] of [
    [at('dir'), 'Directory'],
    [at('link'), 'Directory'],
    [at('dir'), 'DirectoryOrCreate'],
    [at('new/dir'), 'DirectoryOrCreate'],
    [at('file'), 'File'],
    [at('newfile'), 'FileOrCreate'],
    [at('socket'), 'Socket'],
    ['/dev/null', 'CharDevice'],
    [at('dir'), ''],
    [at('file'), undefined],
    [at('unset/made'), undefined],
  ] as const) {
    const ready = await set(path, type);
    assert.deepEqual(ready.get('h'), { name: 'h', hostPath: path, readOnly: false });
  }
  assert.equal(await mode(at('new/dir')), 0o755);
  assert.equal(await mode(at('newfile')), 0o644);
  for (const [path, type, message] of [
    [at('none'), 'Directory', /is not a directory/],
    [at('file'), 'Directory', /hostPath type check failed: .*file is not a directory/],
    [at('file'), 'DirectoryOrCreate', /is not a directory/],
    [at('none'), 'File', /is not a file/],
    [at('dir'), 'FileOrCreate', /is not a file/],
    [at('no/folder/file'), 'FileOrCreate', /cannot make the file/],
    [at('file'), 'Socket', /is not a socket file/],
    [at('file'), 'CharDevice', /is not a character device/],
    ['/dev/null', 'BlockDevice', /is not a block device/],
    [at('dir'), 'Folder', /Folder is an invalid hostPath type/],
    ['relative', '', /is not absolute/],
    ['/a/../b', '', /must not contain/],
  ] as const) {
    await assert.rejects(set(path, type), message);
  }
});

test('mount points for nested volumes are made inside volumes that are read-only', { skip }, async (t) => {
  const { volumes, objects, at } = await bench(t);
  objects.configmaps.set('ns/c', { data: { a: '1' } });
  await volumes.setUp(
    podOf({
      volumes: [
        { name: 'c', configMap: { name: 'c' } },
        { name: 'd', emptyDir: {} },
      ],
      containers: [
        {
          name: 'main',
          image: 'i',
          volumeMounts: [
            { name: 'c', mountPath: '/etc/app' },
            { name: 'd', mountPath: '/etc/app/state/dir' },
            { name: 'd', mountPath: '/etc/app/state/dir/deeper' },
            { name: 'd', mountPath: '/etc/application' },
          ],
        },
      ],
    }),
  );
  const folder = at('uid-1', 'configmap', 'c');
  assert.ok((await stat(join(folder, 'state/dir'))).isDirectory());
  assert.deepEqual(await readdir(join(folder, 'state/dir')), []);
  await volumes.tearDown('uid-1');
});

test('names that would leave the folder are refused', async (t) => {
  const { volumes } = await bench(t);
  for (const uid of ['..', '../x', 'a/b', '', '.']) {
    await assert.rejects(async () => volumes.setUp(podOf({}, uid)), /cannot be the uid/);
    await assert.rejects(async () => volumes.tearDown(uid), /cannot be the uid/);
  }
  await assert.rejects(
    volumes.setUp(podOf({ volumes: [{ name: '../x', emptyDir: {} }] })),
    /cannot name a volume/,
  );
});

test('an aborted signal ends the work', { skip }, async (t) => {
  const { volumes } = await bench(t);
  await assert.rejects(volumes.setUp(podOf({ volumes: [apiAccess] }), AbortSignal.abort()), (error) =>
    isError(error, 'ABORTED'),
  );
});

test('tear down goes into stacked, bound and busy mounts, and never through links', { skip }, async (t) => {
  const { volumes, kubeletDir, at } = await bench(t);
  const outside = await scratch(t);
  await mkdir(join(outside, 'precious'));
  await writeFile(join(outside, 'precious/file'), 'x');
  await volumes.setUp(
    podOf({
      volumes: [
        { name: 'd', emptyDir: {} },
        { name: 'm', emptyDir: { medium: 'Memory' } },
      ],
    }),
  );
  const folder = at('uid-1', 'empty-dir', 'd');
  await symlink(join(outside, 'precious'), join(folder, 'link'));
  await symlink('/', join(folder, 'root'));
  await mkdir(join(folder, 'with space\\and'));
  mount(join(outside, 'precious'), join(folder, 'with space\\and'), null, mountFlags.BIND);
  mount('tmpfs', join(folder, 'with space\\and'), 'tmpfs', 0, null);
  const busy = await import('node:fs/promises').then(({ open }) =>
    open(join(at('uid-1', 'empty-dir', 'm'), 'open'), 'w'),
  );
  t.after(() => busy.close());
  await volumes.tearDown('uid-1');
  assert.deepEqual(await mountsBelow(kubeletDir), []);
  assert.deepEqual(await volumes.podsOnDisk(), []);
  assert.equal(await readFile(join(outside, 'precious/file'), 'utf8'), 'x');
});
