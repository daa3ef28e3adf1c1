/** Certificates of pods on a real apiserver, with a signer of our own. */
import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { exec } from '../../runtime/host/exec.ts';
import { type Authority, makeAuthority } from '../peers/certificates.ts';
import { waitFor } from '../peers/process.ts';
import { isReady, makePod, type Stage, setStage, skip } from './stage.ts';

const namespace = 'certificates';
const group = '/apis/certificates.k8s.io/v1';
const signerName = 'example.com/signer';

interface Request {
  readonly metadata: { readonly name: string };
  readonly spec: Readonly<Record<string, unknown>> & {
    readonly podName: string;
    readonly stubPKCS10Request: string;
  };
  readonly status?: { readonly conditions?: readonly unknown[] };
}

test('certificates of pods', { skip }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-signer-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const stage = await setStage(t);
  await stage.makeNamespace(namespace);
  const nothing = await stage.node.traces();
  const authority = await makeAuthority(folder, 'Signer of pods');
  await t.test('issued, and after the request was deleted, made anew', () => issue(stage, folder, authority));
  await t.test('denied', () => deny(stage));
  await t.test('nothing is left on the node', () => stage.node.tracesBecome(nothing));
});

function podOf(stage: Stage, name: string, keyType: string) {
  return makePod(namespace, name, {
    nodeName: stage.node.name,
    securityContext: { runAsUser: 1000, fsGroup: 2000 },
    containers: [
      {
        name: 'main',
        image: stage.images.one,
        command: ['sh', '-c', "trap 'exit 0' TERM; sleep 1000 & wait"],
        volumeMounts: [{ name: 'v', mountPath: '/credentials' }],
      },
    ],
    volumes: [
      {
        name: 'v',
        projected: {
          sources: [
            {
              podCertificate: {
                signerName,
                keyType,
                maxExpirationSeconds: 86_400,
                credentialBundlePath: 'bundle.pem',
                keyPath: 'key.pem',
                certificateChainPath: 'chain.pem',
                userAnnotations: { 'example.com/wish': 'short' },
              },
            } as object,
          ],
        },
      },
    ],
  });
}

/** The request of the pod that nobody has answered and that is not `but`. */
function requestOf(stage: Stage, podName: string, but = ''): Promise<Request> {
  return waitFor(
    `a request for a certificate of ${podName}`,
    async () => {
      const path = `${group}/namespaces/${namespace}/podcertificaterequests`;
      const { items } = (await stage.cluster.read<{ items: Request[] }>(path))!;
      return items.find(
        ({ metadata, spec, status }) =>
          spec.podName === podName && metadata.name !== but && !status?.conditions?.length,
      );
    },
    { deadlineMs: 30_000 },
  );
}

async function answer(stage: Stage, name: string, type: string, status: object = {}): Promise<void> {
  const condition = {
    type,
    status: 'True',
    reason: 'Decided',
    message: 'the signer says so',
    lastTransitionTime: seconds(Date.now()),
  };
  const patch = JSON.stringify({ status: { conditions: [condition], ...status } });
  await stage.cluster.kubectl([
    ...['-n', namespace, 'patch', 'podcertificaterequests.v1.certificates.k8s.io', name],
    ...['--subresource=status', '--type=merge', '-p', patch],
  ]);
}

const seconds = (time: number) => new Date(time).toISOString().replace(/\.\d+Z$/, 'Z');

async function issue(stage: Stage, folder: string, authority: Authority): Promise<void> {
  const { cluster, node } = stage;
  const applied = podOf(stage, 'certified', 'ECDSAP384');
  await cluster.apply(applied);
  const lost = await requestOf(stage, 'certified');
  await cluster.kubectl([
    ...['-n', namespace, 'delete', 'podcertificaterequests.v1.certificates.k8s.io', lost.metadata.name],
  ]);
  const request = await requestOf(stage, 'certified', lost.metadata.name);
  const { spec } = request;
  assert.deepEqual(
    [spec['signerName'], spec['nodeName'], spec['serviceAccountName'], spec['maxExpirationSeconds']],
    [signerName, node.name, 'default', 86_400],
  );
  assert.deepEqual(spec['unverifiedUserAnnotations'], { 'example.com/wish': 'short' });
  const [csr, cert] = [join(folder, 'pod.csr'), join(folder, 'pod.crt')];
  await writeFile(csr, Buffer.from(spec.stubPKCS10Request, 'base64'));
  await exec(
    'openssl',
    [
      ...['x509', '-req', '-inform', 'DER', '-in', csr, '-CA', authority.cert, '-CAkey', authority.key],
      ...['-days', '1', '-out', cert],
    ],
    { deadlineMs: 10_000 },
  );
  const pem = await readFile(cert, 'utf8');
  const { validFrom, validTo } = new X509Certificate(pem);
  await answer(stage, request.metadata.name, 'Issued', {
    certificateChain: pem,
    notBefore: seconds(Date.parse(validFrom)),
    notAfter: seconds(Date.parse(validTo)),
    beginRefreshAt: seconds(Date.parse(validFrom) + 43_200_000),
  });
  await stage.pod(namespace, 'certified', isReady, 120_000);
  const run = (...command: string[]) =>
    cluster.kubectl(['-n', namespace, 'exec', 'certified', '--', ...command]);
  const key = await run('cat', '/credentials/key.pem');
  assert.equal(await run('cat', '/credentials/chain.pem'), pem);
  assert.equal(await run('cat', '/credentials/bundle.pem'), key + pem);
  assert.match(key, /^-----BEGIN PRIVATE KEY-----\n/);
  await writeFile(join(folder, 'pod.key'), key, { mode: 0o600 });
  const own = await exec('openssl', ['pkey', '-in', join(folder, 'pod.key'), '-pubout'], {
    deadlineMs: 10_000,
  });
  const certified = await exec('openssl', ['x509', '-in', cert, '-noout', '-pubkey'], { deadlineMs: 10_000 });
  assert.equal(own.stdout.toString(), certified.stdout.toString());
  assert.match(await run('ls', '-lnL', '/credentials/key.pem'), /^-rw-r----- +1 1000 +2000 /);
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', 'certified', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
}

async function deny(stage: Stage): Promise<void> {
  const { cluster } = stage;
  await cluster.apply(podOf(stage, 'unwanted', 'ED25519'));
  const { metadata } = await requestOf(stage, 'unwanted');
  await answer(stage, metadata.name, 'Denied');
  await stage.event(
    namespace,
    'unwanted',
    ({ reason, type, message }) =>
      reason === 'Denied' &&
      type === 'Warning' &&
      message ===
        `PodCertificateRequest ${namespace}/${metadata.name} was denied, reason="Decided", message="the signer says so"`,
  );
  await stage.event(
    namespace,
    'unwanted',
    ({ reason, message }) =>
      reason === 'FailedMount' &&
      message!.includes(
        'PodCertificateRequest was permanently denied: reason="Decided" message="the signer says so"',
      ),
  );
  await cluster.kubectl(['-n', namespace, 'delete', 'pod', 'unwanted', '--timeout=60s'], {
    deadlineMs: 70_000,
  });
}
