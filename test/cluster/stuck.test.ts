/** One stuck pod never stops another: whatever hangs, the node stays Ready, others start, and the stuck can be deleted. */
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Container, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { mount, unmount } from '../../runtime/host/syscalls.ts';
import { waitFor } from '../peers/process.ts';
import { isReady, makePod, setStage, skip, statusOf } from './stage.ts';

const namespace = 'stuck';

/** Takes every connection and never says a word. */
async function silentServer(t: TestContext): Promise<number> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket);
    socket.on('error', () => {}).on('close', () => sockets.delete(socket));
  });
  t.after(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  await new Promise<void>((resolve) => server.listen(0, '0.0.0.0', resolve));
  return (server.address() as AddressInfo).port;
}

/** A folder with a `bridge` that hangs in ADD for the pods of these names, and is the real one for all others. */
async function hangingPlugin(t: TestContext, names: string): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-stuck-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const real = ['/opt/cni/bin/bridge', '/usr/lib/cni/bridge'].find((path) => existsSync(path));
  assert.ok(real, 'there is a bridge plugin');
  const script = `#!/bin/sh
case "$CNI_COMMAND $CNI_ARGS" in
ADD*K8S_POD_NAME=${names}*) exec sleep 100000 ;;
esac
exec ${real}
`;
  await writeFile(join(folder, 'bridge'), script, { mode: 0o755 });
  return folder;
}

/** A FUSE file system that nobody serves: whoever looks at it waits. */
async function deadMount(t: TestContext): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-dead-'));
  const device = await open('/dev/fuse', 'r+');
  mount('keelson-dead', folder, 'fuse', 0, `fd=${device.fd},rootmode=40000,user_id=0,group_id=0,allow_other`);
  t.after(async () => {
    // Closing the device is the server's end: all that waits gets an error.
    await device.close();
    unmount(folder);
    await rm(folder, { recursive: true, force: true });
  });
  return folder;
}

test('what hangs holds up nobody else', { skip, timeout: 400_000 }, async (t) => {
  const silent = await silentServer(t);
  const plugins = await hangingPlugin(t, 'cni-');
  const stage = await setStage(t, { keelson: { cniBinDirs: [plugins, '/opt/cni/bin', '/usr/lib/cni'] } });
  const { cluster, node, images } = stage;
  const dead = await deadMount(t);
  await stage.makeNamespace(namespace);
  const before = await node.traces();

  const one = (more: Partial<Container> = {}, pod: Partial<PodSpec> = {}): PodSpec => ({
    ...pod,
    containers: [{ name: 'main', image: images.one, command: ['sleep', '100000'], ...more }],
  });
  const silentGet = { httpGet: { host: '127.0.0.1', port: silent }, timeoutSeconds: 60, periodSeconds: 1 };
  const kinds: Readonly<Record<string, PodSpec>> = {
    cni: one(),
    registry: one({ image: `127.0.0.1:${silent}/test/none:1` }),
    'probe-http': one({ readinessProbe: silentGet }),
    'probe-exec': one({
      readinessProbe: { exec: { command: ['sleep', '100000'] }, timeoutSeconds: 60, periodSeconds: 1 },
    }),
    'post-start': one({ lifecycle: { postStart: { exec: { command: ['sleep', '100000'] } } } }),
    'pre-stop': one({ lifecycle: { preStop: { exec: { command: ['sleep', '100000'] } } } }),
    'pre-stop-http': one({ lifecycle: { preStop: { httpGet: { host: '127.0.0.1', port: silent } } } }),
    deaf: one({ command: ['sh', '-c', 'trap "" TERM; while :; do sleep 1; done'] }),
    // A file system whose server does not answer, as a dead NFS mount.
    'dead-mount': {
      volumes: [{ name: 'data', hostPath: { path: dead, type: 'Directory' } }],
      containers: one({ volumeMounts: [{ name: 'data', mountPath: '/data' }] }).containers,
    },
    'fifo-env': {
      volumes: [{ name: 'data', emptyDir: {} }],
      initContainers: [
        {
          name: 'make',
          image: images.one,
          command: ['mkfifo', '/data/env'],
          volumeMounts: [{ name: 'data', mountPath: '/data' }],
        },
      ],
      containers: [
        {
          name: 'main',
          image: images.one,
          command: ['sleep', '100000'],
          env: [
            {
              name: 'X',
              valueFrom: { fileKeyRef: { volumeName: 'data', path: 'env', key: 'X' } } as object,
            },
          ],
        },
      ],
    },
  };
  // More of each than any queue of the node has places.
  const stuck = Object.entries(kinds).flatMap(([kind, spec]) =>
    Array.from({ length: 5 }, (_, index) => makePod(namespace, `${kind}-${index}`, spec)),
  );
  const create = (...pods: readonly Pod[]) =>
    cluster.apply(...pods.map((pod) => ({ ...pod, spec: { ...pod.spec!, nodeName: node.name } })));
  await create(...stuck);

  const status = (name: string, wanted: (pod: Pod) => boolean) => stage.pod(namespace, name, wanted, 90_000);
  const waits = (reason: string) => (pod: Pod) => statusOf(pod)?.state?.waiting?.reason === reason;
  await status('fifo-env-4', waits('CreateContainerConfigError'));
  await status('pre-stop-4', isReady);
  await status('deaf-4', isReady);
  for (const kind of ['probe-http', 'probe-exec'])
    await status(`${kind}-4`, (pod) => statusOf(pod)?.state?.running !== undefined && !isReady(pod));
  for (const kind of ['cni', 'registry', 'post-start', 'dead-mount'])
    await status(`${kind}-4`, (pod) => !isReady(pod) && pod.status?.phase === 'Pending');

  // A pod with another image of its own starts and is deleted meanwhile.
  const well = makePod(namespace, 'well', {
    containers: [
      {
        ...one({ image: images.two }).containers[0]!,
        readinessProbe: { exec: { command: ['true'] }, periodSeconds: 1 },
      },
    ],
  });
  await create(well);
  await stage.pod(namespace, 'well', isReady, 30_000);
  await stage.nodeReports();

  await cluster.kubectl(['delete', 'pods', '--all', '-n', namespace, '--wait=false']);
  await waitFor(
    'all pods to be gone',
    async () => ((await stage.pods(namespace)).length === 0 ? true : undefined),
    { deadlineMs: 90_000, everyMs: 200, daemon: node.agent },
  ).catch(async (error: unknown) => {
    const left = (await stage.pods(namespace)).map(({ metadata }) => metadata!.name);
    throw new Error(`still there: ${left.join(', ')}`, { cause: error });
  });
  await node.tracesBecome(before);
  await stage.nodeReports();
});
