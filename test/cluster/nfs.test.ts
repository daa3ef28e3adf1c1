/** nfs volumes of a server in the kernel of this machine: inline, by a claim, and with the server gone. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { mountsBelow } from '../../agent/volumes/mounts.ts';
import { exec } from '../../runtime/host/exec.ts';
import { waitFor } from '../peers/process.ts';
import { isReady, makePod, skip as noCluster, type Stage, setStage } from './stage.ts';

const namespace = 'nfs';
const server = '127.0.0.1';
/** A new server gives clients of an earlier one 90 s before files are opened, and machines without KVM are slow. */
const slowMs = 300_000;

/** Why there can be no server here; false where there can. */
async function missing(): Promise<string | false> {
  if (noCluster) return noCluster;
  if (!existsSync('/run/systemd/system')) return 'systemd does not run here, which starts the NFS server';
  for (const program of ['/sbin/mount.nfs', '/usr/sbin/exportfs', '/usr/sbin/rpc.nfsd'])
    if (!existsSync(program)) return `${program} is missing: apt-get install nfs-kernel-server`;
  for (const [module, name] of [
    ['nfsv4', 'nfs4'],
    ['nfsd', 'nfsd'],
  ] as const) {
    await exec('modprobe', [module], { deadlineMs: 60_000, okCodes: 'any' }).catch(() => {});
    const known = await readFile('/proc/filesystems', 'utf8');
    if (!known.split('\n').some((line) => line.endsWith(`\t${name}`)))
      return `the kernel has no ${name} (modprobe ${module})`;
  }
  return false;
}

const skip = await missing();

/** A folder that the server shows. */
async function shared(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-nfs-'));
  await writeFile(join(folder, 'greeting'), 'hello\n');
  await exec('systemctl', ['start', 'nfs-server'], { deadlineMs: 120_000 });
  await exec('exportfs', ['-o', 'rw,no_root_squash,no_subtree_check,insecure', `${server}:${folder}`], {
    deadlineMs: 30_000,
  });
  t.after(async () => {
    await exec('exportfs', ['-u', `${server}:${folder}`], { deadlineMs: 30_000, okCodes: 'any' });
    await rm(folder, { recursive: true, force: true });
  });
  return folder;
}

const rule = ['-p', 'tcp', '-d', server, '--dport', '2049', '-j', 'DROP'];
const iptables = (...args: string[]) =>
  exec('iptables', ['-w', ...args], { deadlineMs: 30_000, okCodes: 'any' });

/** A pod that runs `script` once and is ready then. */
function podOf({ images, node }: Stage, name: string, script: string, volume?: object): Pod {
  return makePod(namespace, name, {
    nodeName: node.name,
    ...(volume === undefined ? {} : { volumes: [{ name: 'v', ...volume }] }),
    containers: [
      {
        name: 'main',
        image: images.one,
        command: ['sh', '-c', `${script} && touch /tmp/done; trap 'exit 0' TERM; sleep 100000 & wait`],
        readinessProbe: { exec: { command: ['cat', '/tmp/done'] }, periodSeconds: 1 },
        ...(volume === undefined ? {} : { volumeMounts: [{ name: 'v', mountPath: '/data' }] }),
      },
    ],
  } as PodSpec);
}

async function start(stage: Stage, pod: Pod): Promise<void> {
  await stage.cluster.apply(pod);
  await stage.pod(namespace, pod.metadata!.name!, isReady, slowMs);
}

/** Deletes the pod and waits until the apiserver has it no more. */
async function remove({ cluster }: Stage, name: string): Promise<void> {
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', name, '--timeout=290s'], { deadlineMs: slowMs });
}

const nfsMounts = async ({ node }: Stage) =>
  (await mountsBelow(node.paths.kubeletDir)).filter((path) => path.includes('kubernetes.io~nfs'));

test('nfs volumes', { skip, timeout: 1_500_000 }, async (t) => {
  const folder = await shared(t);
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  const inline = { nfs: { server, path: folder } };

  await t.test('a pod reads and writes, and takes its mount with it', async () => {
    await start(stage, podOf(stage, 'inline', 'cat /data/greeting > /data/copy', inline));
    assert.equal(await readFile(join(folder, 'copy'), 'utf8'), 'hello\n');
    assert.equal((await nfsMounts(stage)).length, 1);
    await remove(stage, 'inline');
    await waitFor(
      'the volume to be unmounted',
      async () => ((await nfsMounts(stage)).length === 0 ? true : undefined),
      { deadlineMs: 60_000, everyMs: 100, daemon: stage.node.agent },
    );
    assert.equal(await readFile(join(folder, 'copy'), 'utf8'), 'hello\n', 'what the server has stays');
  });

  await t.test('by a claim, with options, and read-only', async () => {
    await provide(stage, inline);
    const script = 'cat /data/greeting && ! touch /data/never && grep " /data nfs4.*noatime" /proc/mounts';
    const claim = { persistentVolumeClaim: { claimName: 'shared', readOnly: true } };
    await start(stage, podOf(stage, 'claimed', script, claim));
    assert.ok(!existsSync(join(folder, 'never')));
    await remove(stage, 'claimed');
  });

  await t.test('with the server gone its pod can be deleted, and others go on', async () => {
    await start(stage, podOf(stage, 'orphan', 'cat /data/greeting', inline));
    await iptables('-I', 'INPUT', ...rule);
    try {
      await stage.cluster.apply(podOf(stage, 'waiting', 'cat /data/greeting', inline));
      await start(stage, podOf(stage, 'well', 'true'));
      await remove(stage, 'orphan');
      await stage.nodeReports();
      await remove(stage, 'waiting');
      await remove(stage, 'well');
      assert.deepEqual(await nfsMounts(stage), []);
    } finally {
      await iptables('-D', 'INPUT', ...rule);
    }
  });

  await stage.node.tracesBecome(nothing);
});

async function provide({ cluster }: Stage, source: object): Promise<void> {
  const spec = { accessModes: ['ReadWriteMany'], storageClassName: 'shared' };
  await cluster.apply({
    apiVersion: 'v1',
    kind: 'PersistentVolume',
    metadata: { name: 'shared' },
    spec: { ...spec, ...source, capacity: { storage: '10Mi' }, mountOptions: ['noatime'] },
  });
  await cluster.apply({
    apiVersion: 'v1',
    kind: 'PersistentVolumeClaim',
    metadata: { name: 'shared', namespace },
    spec: { ...spec, resources: { requests: { storage: '10Mi' } } },
  });
  const bound = '--for=jsonpath={.status.phase}=Bound';
  await cluster.kubectl(['-n', namespace, 'wait', bound, 'pvc/shared', '--timeout=290s'], {
    deadlineMs: slowMs,
  });
}
