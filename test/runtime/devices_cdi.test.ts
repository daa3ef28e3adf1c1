/** The Container Device Interface: specifications, which device is meant, and devices in a real container. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, utimes, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { applyEdits } from '../../runtime/cdi/edits.ts';
import { makeCdiRegistry, wantedCdiDevices } from '../../runtime/cdi/registry.ts';
import { isQualifiedName, parseCdiSpec } from '../../runtime/cdi/spec.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { OciSpec } from '../../runtime/oci/config.ts';
import { cannotRun, makeMachine } from './machine.ts';

const spec = (changes: object = {}) => ({
  cdiVersion: '0.6.0',
  kind: 'vendor.com/net',
  devices: [{ name: 'a', containerEdits: { env: ['A=1'] } }],
  ...changes,
});

test('names of devices', () => {
  for (const name of ['vendor.com/net=a', 'v/c=0', 'v-1/c_2.x=gpu0:mig-1'])
    assert.ok(isQualifiedName(name), name);
  for (const name of [
    ...[
      '',
      'a',
      'v/c',
      'v/c=',
      '/c=a',
      'v=a',
      '=a',
      'v/c/d=a',
      '1v/c=a',
      'v/c=a/b',
      'v/c=-a',
      'v/c=a-',
      'v/c=a\nb',
    ],
    ...['../c=a', 'v/c=..', '/dev/zero'],
  ]) {
    assert.ok(!isQualifiedName(name), name);
  }
  assert.deepEqual(
    wantedCdiDevices([{ name: 'v/c=a' }, { name: 'v/c=a' }], {
      'cdi.k8s.io/plugin': 'v/c=b,v/c=a',
      other: 'not one',
    }),
    ['v/c=a', 'v/c=b'],
  );
  assert.throws(
    () => wantedCdiDevices([], { 'cdi.k8s.io/x': 'v/c=b,bad' }),
    (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && /"bad"/.test(error.message),
  );
});

test('specifications', () => {
  const read = parseCdiSpec(
    [
      'cdiVersion: "1.0.0"',
      'kind: vendor.com/net',
      'containerEdits: {env: [ALL=yes]}',
      'devices:',
      '- name: a',
      '  containerEdits:',
      '    deviceNodes: [{path: /dev/a, hostPath: /dev/zero, permissions: rw, fileMode: 384}]',
      '    mounts: [{hostPath: /h, containerPath: /c, options: [ro]}]',
      '    hooks: [{hookName: createRuntime, path: /bin/true, args: [x], timeout: 5}]',
      '    additionalGids: [5]',
    ].join('\n'),
    'file',
  );
  assert.equal(read.kind, 'vendor.com/net');
  assert.deepEqual(read.edits.env, ['ALL=yes']);
  const edits = read.devices.get('a');
  assert.equal(edits?.deviceNodes[0]?.hostPath, '/dev/zero');
  assert.equal(edits?.deviceNodes[0]?.fileMode, 0o600);
  assert.equal(edits?.hooks[0]?.timeout, 5);
  assert.deepEqual(edits?.additionalGids, [5]);
  const device = (containerEdits: unknown) => spec({ devices: [{ name: 'a', containerEdits }] });
  const bad: [object, RegExp][] = [
    [spec({ cdiVersion: '2.0.0' }), /cdiVersion/],
    [spec({ kind: 'net' }), /kind/],
    [spec({ devices: [] }), /no devices/],
    [spec({ devices: 'x' }), /devices must be a list/],
    [spec({ devices: [{ name: '/x', containerEdits: {} }] }), /name of a device/],
    [spec({ devices: [...spec().devices, ...spec().devices] }), /twice/],
    [device({ env: ['=x'] }), /NAME=value/],
    [device({ env: 'x' }), /env must be a list/],
    [device({ deviceNodes: [{ path: 'x' }] }), /absolute/],
    [device({ deviceNodes: [{ path: '/x', type: 'z' }] }), /type/],
    [device({ deviceNodes: [{ path: '/x', permissions: 'q' }] }), /permissions/],
    [device({ deviceNodes: [{ path: '/x', major: -1 }] }), /major/],
    [device({ mounts: [{ hostPath: '/x' }] }), /containerPath/],
    [device({ hooks: [{ hookName: 'never', path: '/x' }] }), /hook/],
    [device({ hooks: [{ hookName: 'prestart', path: 'x' }] }), /absolute/],
    [device(null), /must be an object/],
  ];
  for (const [content, why] of bad) {
    assert.throws(
      () => parseCdiSpec(JSON.stringify(content), '/etc/cdi/x.json'),
      (error) =>
        isError(error, 'CONFIG_INVALID') &&
        why.test(error.message) &&
        error.message.includes('/etc/cdi/x.json'),
      JSON.stringify(content),
    );
  }
  for (const text of ['', '[]', '"x"', '{', '\0', 'a: &a [*a]', '- - -']) {
    assert.throws(
      () => parseCdiSpec(text, 'x'),
      (error) => error instanceof KeelsonError,
      text,
    );
  }
});

test('which device is meant: later folders win, two of one folder do not, broken files hide nothing', async (t) => {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true }));
  const [etc, run] = [join(root, 'etc'), join(root, 'run')];
  await mkdir(etc);
  const registry = makeCdiRegistry([etc, run]);
  const put = (folder: string, name: string, content: object | string) =>
    writeFile(join(folder, name), typeof content === 'string' ? content : JSON.stringify(content));
  const envOf = async (...names: string[]) => (await registry.resolve(names)).flatMap(({ env }) => env);
  assert.deepEqual(await registry.resolve([]), []);
  await put(etc, 'a.json', spec({ containerEdits: { env: ['SPEC=etc'] } }));
  await put(etc, 'readme.txt', 'no specification');
  assert.deepEqual(await envOf('vendor.com/net=a'), ['SPEC=etc', 'A=1']);
  await mkdir(run);
  await put(
    run,
    'b.yaml',
    'cdiVersion: 0.5.0\nkind: vendor.com/net\ndevices: [{name: a, containerEdits: {env: [A=2]}}]\n',
  );
  assert.deepEqual(await envOf('vendor.com/net=a'), ['A=2']);
  const other = { name: 'b', containerEdits: { env: ['B=1'] } };
  await put(
    etc,
    'a.json',
    spec({ devices: [...spec().devices, other], containerEdits: { env: ['SPEC=new'] } }),
  );
  await utimes(join(etc, 'a.json'), 1, 1);
  await rm(join(run, 'b.yaml'));
  assert.deepEqual(
    await envOf('vendor.com/net=b', 'vendor.com/net=a'),
    ['SPEC=new', 'B=1', 'A=1'],
    'its own part once',
  );
  await put(etc, 'broken.json', '{');
  await assert.rejects(
    envOf('vendor.com/net=none', 'vendor.com/net=a'),
    (error) =>
      isError(error, 'CONTAINER_CONFIG_INVALID') &&
      /unresolvable CDI devices vendor\.com\/net=none; /.test(error.message) &&
      /broken\.json/.test(error.message),
  );
  await put(etc, 'c.json', spec());
  await assert.rejects(envOf('vendor.com/net=a'), /is in .*a\.json and in .*c\.json/);
});

const base: OciSpec = {
  ociVersion: '1.0.2',
  process: {
    terminal: false,
    user: { uid: 5, gid: 6, additionalGids: [6] },
    args: ['x'],
    env: ['A=0', 'B=0'],
    cwd: '/',
    capabilities: { bounding: [], effective: [], permitted: [] },
    noNewPrivileges: false,
  },
  root: { path: '/r', readonly: false },
  mounts: [
    { destination: '/proc', type: 'proc', source: 'proc', options: [] },
    { destination: '/c', type: 'bind', source: '/old', options: ['rbind'] },
    { destination: '/c/below', type: 'bind', source: '/below', options: ['rbind'] },
  ],
  annotations: {},
  linux: {
    namespaces: [],
    cgroupsPath: '/x',
    resources: { devices: [{ allow: false, access: 'rwm' }] },
    devices: [{ path: '/dev/a', type: 'c', major: 9, minor: 9 }],
    maskedPaths: [],
    readonlyPaths: [],
  },
};

test('edits of a config.json', () => {
  const edits = parseCdiSpec(
    JSON.stringify(
      spec({
        devices: [
          {
            name: 'a',
            containerEdits: {
              env: ['A=1', 'C=3'],
              mounts: [
                { hostPath: '/h', containerPath: '/c', options: ['ro'] },
                { hostPath: 't', containerPath: '/t', type: 'tmpfs' },
              ],
              hooks: [{ hookName: 'poststop', path: '/p' }],
              additionalGids: [0, 7],
            },
          },
        ],
      }),
    ),
    'x',
  ).devices.get('a')!;
  const node = { path: '/dev/a', type: 'b', major: 1, minor: 2, access: 'rw' } as const;
  const result = applyEdits(base, edits, [node]);
  assert.deepEqual(result.process.env, ['A=1', 'B=0', 'C=3']);
  assert.deepEqual(result.process.user.additionalGids, [6, 7]);
  assert.deepEqual(
    result.mounts.map(({ destination, source, type, options }) => [destination, source, type, ...options]),
    [
      ['/proc', 'proc', 'proc'],
      ['/c', '/h', 'bind', 'rbind', 'ro'],
      ['/t', 't', 'tmpfs'],
      ['/c/below', '/below', 'bind', 'rbind'],
    ],
  );
  assert.deepEqual(result.linux.devices, [{ path: '/dev/a', type: 'b', major: 1, minor: 2 }]);
  assert.deepEqual(result.linux.resources.devices.at(-1), {
    allow: true,
    type: 'b',
    major: 1,
    minor: 2,
    access: 'rw',
  });
  assert.deepEqual(
    result.hooks?.poststop?.map(({ path }) => path),
    ['/p'],
  );
  assert.equal(applyEdits(base, { ...edits, mounts: [] }, []).mounts, base.mounts);
});

test('a device in a container: environment, mount, node, hook', { skip: cannotRun }, async (t) => {
  const machine = await makeMachine(t);
  const { root, runtime } = machine;
  const [etc, run] = [join(root, 'cdi-etc'), join(root, 'cdi-run')];
  await Promise.all([mkdir(etc), mkdir(run), mkdir(join(root, 'shared'))]);
  await writeFile(join(root, 'shared/file'), 'from the vendor\n');
  await writeFile(
    join(run, 'vendor.json'),
    JSON.stringify(
      spec({
        containerEdits: { env: ['FROM=vendor'] },
        devices: [
          {
            name: 'zero',
            containerEdits: {
              env: ['DEVICE=zero'],
              deviceNodes: [{ path: '/dev/vendor0', hostPath: '/dev/zero', permissions: 'r' }],
              mounts: [
                {
                  hostPath: join(root, 'shared'),
                  containerPath: '/vendor',
                  options: ['ro', 'nosuid', 'bind'],
                },
              ],
              hooks: [
                {
                  hookName: 'createRuntime',
                  path: '/bin/busybox',
                  args: ['busybox', 'touch', join(root, 'hooked')],
                },
              ],
            },
          },
          { name: 'gone', containerEdits: { deviceNodes: [{ path: '/dev/no-such-device' }] } },
        ],
      }),
    ),
  );
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const script =
    'echo $FROM $DEVICE; cat /vendor/file; touch /vendor/x 2>&1; head -c 2 /dev/vendor0 | wc -c; ls -l /dev/vendor0';
  const id = await machine.startContainer(
    sandbox,
    ['busybox', 'sh', '-c', script.replaceAll('wc', 'busybox wc')],
    {
      cdiDevices: [{ name: 'vendor.com/net=zero' }],
    },
  );
  await machine.exited(id);
  const log = await machine.logOf(id);
  for (const line of ['vendor zero', 'from the vendor', 'touch: /vendor/x: Read-only file system', '2']) {
    assert.match(log, new RegExp(` F ${line}$`, 'm'));
  }
  assert.match(log, /^\S+ stdout F crw.* 1, +5 .*\/dev\/vendor0$/m);
  await rm(join(root, 'hooked'));
  for (const [name, why] of [
    ['vendor.com/net=none', /unresolvable CDI devices vendor\.com\/net=none/],
    ['vendor.com/net=gone', /\/dev\/no-such-device/],
    ['../x', /is no name/],
  ] as const) {
    await assert.rejects(
      machine.startContainer(sandbox, ['true'], {
        metadata: { name: 'other', attempt: 0 },
        annotations: { 'cdi.k8s.io/test': name },
      }),
      (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && why.test(error.message),
    );
  }
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});
