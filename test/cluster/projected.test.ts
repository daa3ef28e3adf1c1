/** Trust of the cluster in files, and the modes of places inside volumes, on a real apiserver. */
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { makeAuthority } from '../peers/certificates.ts';
import { isReady, makePod, type Stage, setStage, skip } from './stage.ts';

const namespace = 'projected';

test('projected volumes and places in volumes', { skip }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-trust-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  await t.test('bundles of certificates, also those that come late', () => bundles(stage, folder));
  await t.test('what a subPath makes is like its volume', () => subPaths(stage));
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

async function bundles(stage: Stage, folder: string): Promise<void> {
  const { cluster, node, images } = stage;
  const pem = await readFile((await makeAuthority(folder, 'Trusted by all')).cert, 'utf8');
  const pod = makePod(namespace, 'trusting', {
    nodeName: node.name,
    securityContext: { runAsUser: 1000, fsGroup: 2000 },
    containers: [
      {
        name: 'main',
        image: images.one,
        command: ['sh', '-c', "trap 'exit 0' TERM; sleep 1000 & wait"],
        volumeMounts: [{ name: 'v', mountPath: '/trust' }],
      },
    ],
    volumes: [
      {
        name: 'v',
        projected: {
          sources: [
            { clusterTrustBundle: { name: 'late', path: 'late.pem' } },
            { clusterTrustBundle: { name: 'never', optional: true, path: 'never.pem' } },
            {
              clusterTrustBundle: {
                signerName: 'example.com/none',
                labelSelector: {},
                optional: true,
                path: 'nobody.pem',
              },
            },
          ],
        },
      },
    ],
  });
  await cluster.apply(pod);
  await stage.event(namespace, 'trusting', ({ reason, message }) =>
    Boolean(
      reason === 'FailedMount' &&
        message!.includes('clustertrustbundle.certificates.k8s.io "late" not found'),
    ),
  );
  await cluster.apply({
    apiVersion: 'certificates.k8s.io/v1',
    kind: 'ClusterTrustBundle',
    metadata: { name: 'late' },
    spec: { trustBundle: pem },
  });
  await stage.pod(namespace, 'trusting', isReady, 120_000);
  const run = (...command: string[]) =>
    cluster.kubectl(['-n', namespace, 'exec', 'trusting', '--', ...command]);
  assert.equal((await run('cat', '/trust/late.pem')).trim(), pem.trim());
  assert.equal(await run('cat', '/trust/never.pem', '/trust/nobody.pem'), '');
  assert.match(await run('ls', '-lnL', '/trust/late.pem'), /^-rw-r----- +1 1000 +2000 /);
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', 'trusting', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
}

async function subPaths(stage: Stage): Promise<void> {
  const { cluster, node, images } = stage;
  const modes = { memory: 'drwxrwsrwt', disk: 'drwxrwsrwx' };
  for (const [name, mode] of Object.entries(modes)) {
    const emptyDir = name === 'memory' ? { medium: 'Memory' } : {};
    await cluster.apply(
      makePod(namespace, name, {
        nodeName: node.name,
        restartPolicy: 'Never',
        securityContext: { runAsUser: 1000, fsGroup: 123 },
        containers: [
          {
            name: 'main',
            image: images.one,
            command: ['sh', '-c', 'ls -lnd /part; touch /part/file; ls -ln /part | tail -1'],
            volumeMounts: [{ name: 'v', mountPath: '/part', subPath: 'not/there' }],
          },
        ],
        volumes: [{ name: 'v', emptyDir }],
      }),
    );
    await stage.pod(namespace, name, ({ status }) => status?.phase === 'Succeeded');
    const said = await cluster.kubectl(['-n', namespace, 'logs', name]);
    assert.match(said, new RegExp(`^${mode} .* 123 .*/part\\n-rw-r--r-- .* 1000 +123 .*file\\n$`), name);
    await cluster.kubectl(['-n', namespace, 'delete', 'pod', name, '--timeout=60s'], { deadlineMs: 70_000 });
  }
}
