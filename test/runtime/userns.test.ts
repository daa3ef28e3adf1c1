/**
 * User namespaces. Containers with one take runc 1.2 or newer, which KEELSON_TEST_RUNC names where the distribution's is
 * older; else crun is the one that makes them.
 */
import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import { chmod, chown, mkdir, readFile, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { NamespaceOption, UserNamespace } from '../../runtime/api.ts';
import { isError } from '../../runtime/host/errors.ts';
import { checkUsers, makeUserNamespaces, outsideId, sameUsers } from '../../runtime/security/userns.ts';
import { cannotRun, type Machine, makeMachine } from './machine.ts';

const skip = cannotRun;
const range = { containerId: 0, hostId: 200_000, length: 65_536 };
const user: UserNamespace = { mode: 'pod', uids: [range], gids: [range] };
const own: NamespaceOption = { network: 'pod', pid: 'container', ipc: 'pod', user };

test('mappings', () => {
  const check = (changes: Partial<NamespaceOption>) => checkUsers({ ...own, ...changes }, 'INVALID_ARGUMENT');
  check({});
  check({ user: { ...user, mode: 'node', uids: [] } });
  for (const changes of [
    { user: { ...user, uids: [] } },
    { user: { ...user, gids: [range, range] } },
    { user: { ...user, uids: [{ ...range, length: 0 }] } },
    { user: { ...user, uids: [{ ...range, hostId: -1 }] } },
    { user: { ...user, uids: [{ ...range, hostId: 2 ** 32 - 5 }] } },
    { user: { ...user, uids: [{ ...range, containerId: 5 }] } },
    { user: { ...user, uids: [{ ...range, hostId: Number.NaN }] } },
    { network: 'node' },
    { pid: 'node' },
    { ipc: 'node' },
  ] as const) {
    assert.throws(
      () => check(changes),
      (error) => isError(error, 'INVALID_ARGUMENT'),
      JSON.stringify(changes),
    );
  }
  assert.ok(sameUsers(undefined, undefined) && sameUsers(user, { ...user, uids: [{ ...range }] }));
  assert.ok(!sameUsers(user, undefined));
  assert.ok(!sameUsers(user, { ...user, gids: [{ ...range, hostId: 1 }] }));
  assert.equal(outsideId([range], 5), 200_005);
  assert.equal(outsideId([range], 70_000), 65_534);
});

test('namespaces that a user namespace owns', { skip: process.getuid?.() !== 0 }, async () => {
  const made = await makeUserNamespaces(user, { ipc: true });
  try {
    assert.match(readFileSync(`/proc/${made.pid}/uid_map`, 'utf8'), /^\s+0\s+200000\s+65536$/m);
    for (const kind of ['user', 'net', 'uts', 'ipc']) {
      assert.notEqual(
        statSync(`/proc/${made.pid}/ns/${kind}`).ino,
        statSync(`/proc/self/ns/${kind}`).ino,
        kind,
      );
    }
  } finally {
    await made.end();
  }
  const aborted = AbortSignal.abort();
  await assert.rejects(makeUserNamespaces(user, { ipc: true, signal: aborted }), (error) =>
    isError(error, 'ABORTED'),
  );
});

/** With the handler that has user namespaces; undefined, and the test is skipped, where none has. */
async function userMachine(
  t: Parameters<typeof makeMachine>[0],
): Promise<(Machine & { readonly handler: string }) | undefined> {
  const machine = await makeMachine(t);
  // A pod's root must be able to walk to its files: in a real node's /run it can.
  await chmod(machine.root, 0o711);
  const [runc] = await machine.runtime.handlers();
  if (runc?.userNamespaces) return Object.assign(machine, { handler: '' });
  await assert.rejects(
    machine.runtime.runPodSandbox(machine.sandboxConfig({ linux: { security: { namespaces: own } } }), ''),
    (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && /runc 1\.2/.test(error.hint ?? ''),
  );
  assert.deepEqual(await machine.leftovers(), []);
  const handler = await machine.crun();
  const able = (await machine.runtime.handlers()).find(({ name }) => name === handler)?.userNamespaces;
  if (handler !== undefined && able) return Object.assign(machine, { handler });
  t.skip('no OCI runtime here has idmapped mounts');
  return undefined;
}

test('a pod with a user namespace: ids, files, volumes, network, sysctls; refused without the runtime for it', {
  skip,
}, async (t) => {
  const machine = await userMachine(t);
  if (machine === undefined) return;
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(
    machine.sandboxConfig({
      hostname: 'mapped',
      linux: { security: { namespaces: own }, sysctls: { 'net.ipv4.tcp_syncookies': '0' } },
    }),
    machine.handler,
  );
  const volume = join(machine.root, 'volume');
  await mkdir(volume);
  await writeFile(join(volume, 'file'), 'x');
  await chown(join(volume, 'file'), 1000, 1000);
  await chmod(volume, 0o777);
  const script = [
    'exec 2>&1',
    'cat /proc/self/uid_map | tr -s " "',
    'echo "id $(id -u) $(id -G)"',
    'stat -c "%n %u:%g" /bin/busybox /volume/file /image/etc/passwd',
    'touch /made /volume/made && echo made',
    'chmod 600 /etc/passwd && echo chmod',
    'hostname; cat /proc/sys/net/ipv4/tcp_syncookies; cat /etc/resolv.conf | head -1',
    'ip -o link | grep -c .',
    'ip link set lo mtu 1000 && echo admin',
    'touch /dev/shm/x && echo shm',
    'cat /sys/kernel/mm/transparent_hugepage/enabled >/dev/null && echo sys',
  ].join('\n');
  const id = await machine.startContainer(sandbox, ['sh', '-c', script], {
    mounts: [
      {
        containerPath: '/volume',
        hostPath: volume,
        readonly: false,
        propagation: 'private',
        uidMappings: [range],
        gidMappings: [range],
      },
      {
        containerPath: '/image',
        hostPath: '',
        readonly: true,
        propagation: 'private',
        image: { image: 'busybox' },
        uidMappings: [range],
        gidMappings: [range],
      },
    ],
    linux: {
      security: {
        namespaces: own,
        capabilities: { add: ['NET_ADMIN'], drop: [] },
        seccomp: { type: 'RuntimeDefault' },
      },
    },
  });
  await machine.exited(id);
  const lines = (await machine.logOf(id)).split('\n').map((line) => line.split(' ').slice(3).join(' '));
  assert.deepEqual(lines.slice(0, -1), [
    ' 0 200000 65536',
    'id 0 0 45',
    '/bin/busybox 0:0',
    '/volume/file 1000:1000',
    '/image/etc/passwd 0:0',
    'made',
    'chmod',
    'mapped',
    '0',
    'search default.svc',
    '2',
    'admin',
    'shm',
    'sys',
  ]);
  assert.equal(
    (await stat(join(volume, 'made'))).uid,
    0,
    'the volume is idmapped: root of the pod writes as root',
  );
  assert.equal((await stat(join(machine.layer, 'etc/passwd'))).mode & 0o777, 0o644, 'the image is as it was');
  const long = await machine.startContainer(sandbox, ['sleep', '1000'], {
    metadata: { name: 'long', attempt: 0 },
    linux: { security: { namespaces: own, runAsUser: 1000 } },
  });
  const { pid } = await runtime.containerStatus(long);
  assert.match(await readFile(`/proc/${pid}/status`, 'utf8'), /^Uid:\s+201000\s/m, 'another on the host');
  assert.equal((await runtime.execSync(long, ['id', '-u'], 0)).stdout.toString(), '1000\n');
  await assert.rejects(
    machine.startContainer(sandbox, ['true'], { metadata: { name: 'other', attempt: 0 } }),
    (error) => isError(error, 'CONTAINER_CONFIG_INVALID') && /not that of its sandbox/.test(error.message),
  );
  await machine.restart();
  assert.equal((await machine.runtime.podSandboxStatus(sandbox)).state, 'ready');
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a shared PID namespace in a user namespace', { skip }, async (t) => {
  const machine = await userMachine(t);
  if (machine === undefined) return;
  const namespaces: NamespaceOption = { ...own, pid: 'pod' };
  const sandbox = await machine.runtime.runPodSandbox(
    machine.sandboxConfig({ linux: { security: { namespaces, seccomp: { type: 'RuntimeDefault' } } } }),
    machine.handler,
  );
  const id = await machine.startContainer(sandbox, ['sh', '-c', 'ps; cat /proc/1/comm'], {
    linux: { security: { namespaces } },
  });
  await machine.exited(id);
  assert.match(await machine.logOf(id), /F catatonit$/m);
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});
