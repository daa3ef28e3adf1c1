/**
 * A real control plane on the loopback: etcd, kube-apiserver, kube-controller-manager and kube-scheduler, with
 * certificates of its own, RBAC and the node authorizer. Everything is in one temporary folder.
 */
import { spawn } from 'node:child_process';
import { generateKeyPair } from 'node:crypto';
import { mkdtemp, readFile, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { promisify } from 'node:util';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { type ExecOptions, type ExecResult, exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { type HttpClient, makeHttpClient } from '../../runtime/host/http.ts';
import { type ClusterPrograms, clusterPrograms } from './binaries.ts';
import { type Authority, type KeyPair, makeAuthority } from './certificates.ts';
import { type Daemon, freePorts, startDaemon, waitFor } from './process.ts';

export interface Cluster {
  /** `https://127.0.0.1:PORT`. */
  readonly url: string;
  readonly folder: string;
  /** Path of kubectl. */
  readonly kubectlProgram: string;
  /** The authority of all certificates, PEM. */
  readonly caFile: string;
  /** system:masters. */
  readonly adminKubeconfig: string;
  readonly admin: KeyPair;
  /** What the apiserver shows to nodes: user `kube-apiserver-kubelet-client`, bound to system:kubelet-api-admin. */
  readonly kubeletClient: KeyPair;
  /** A client certificate of the node and a kubeconfig with it. Returns its path. */
  makeNodeKubeconfig(nodeName: string): Promise<string>;
  /** A kubeconfig with a certificate for any user. */
  makeKubeconfig(user: string, organization?: string): Promise<string>;
  /** Runs kubectl as admin to its end. Throws EXEC_FAILED with what it said. Default deadline 60 s. */
  kubectl(args: readonly string[], options?: Partial<ExecOptions>): Promise<string>;
  /** As `kubectl`, for any exit code. */
  tryKubectl(args: readonly string[], options?: Partial<ExecOptions>): Promise<ExecResult>;
  /** kubectl apply of objects. */
  apply(...objects: readonly object[]): Promise<void>;
  /** GET of an API path as admin, without the cost of a kubectl; undefined for 404, throws for other failures. */
  read<T>(path: string): Promise<T | undefined>;
  /** A kubectl that goes on (`logs -f`, `get -w`): its standard output, and how to end it. */
  follow(args: readonly string[]): {
    readonly stdout: Readable;
    readonly ended: Promise<number>;
    stop(): void;
  };
  /** Kills the apiserver; etcd stays. */
  stopApiserver(): Promise<void>;
  /** Starts it again on the same port and waits until it is ready. */
  startApiserver(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Starts a control plane and waits until it serves. Throws DEPENDENCY_MISSING where its programs cannot be had; tests
 * that would rather skip ask `clusterPrograms()` first. `apiserverOptions`: besides those below.
 */
export async function startCluster(
  found?: ClusterPrograms,
  apiserverOptions: readonly string[] = [],
): Promise<Cluster> {
  const programs = found ?? (await clusterPrograms());
  if ('missing' in programs) throw new KeelsonError('DEPENDENCY_MISSING', programs.missing);
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-cluster-'));
  const daemons: Daemon[] = [];
  const at = (name: string) => join(folder, name);
  const start = async (program: keyof ClusterPrograms, args: readonly string[]) => {
    // Little memory: the tests' machine runs four of these beside what is tested.
    const env = { GOGC: '60' };
    const daemon = await startDaemon(programs[program], args, { logFile: at(`${program}.log`), env });
    daemons.push(daemon);
    return daemon;
  };
  let apiserver: Daemon | undefined;
  let http: HttpClient | undefined;
  const close = async () => {
    // The last started first: etcd survives what writes to it.
    for (const daemon of daemons.reverse()) await daemon.kill();
    await http?.destroy();
    await removeTree(folder);
  };

  try {
    const [apiPort, etcdPort, peerPort] = (await freePorts(3)) as [number, number, number];
    const url = `https://127.0.0.1:${apiPort}`;
    const etcdUrl = `http://127.0.0.1:${etcdPort}`;
    const etcd = await start('etcd', [
      `--data-dir=${at('etcd')}`,
      `--listen-client-urls=${etcdUrl}`,
      `--advertise-client-urls=${etcdUrl}`,
      `--listen-peer-urls=http://127.0.0.1:${peerPort}`,
      `--initial-advertise-peer-urls=http://127.0.0.1:${peerPort}`,
      `--initial-cluster=default=http://127.0.0.1:${peerPort}`,
      '--unsafe-no-fsync',
      '--log-level=warn',
    ]);
    const authority = await makeAuthority(folder, 'keelson-test');
    const [serving, kubeletClient, admin, manager, scheduler] = (await Promise.all([
      authority.issue({
        file: 'apiserver',
        commonName: 'kube-apiserver',
        altNames: ['IP:127.0.0.1', 'DNS:localhost', 'DNS:kubernetes.default.svc', 'IP:10.217.0.1'],
      }),
      authority.issue({ file: 'kubelet-client', commonName: 'kube-apiserver-kubelet-client' }),
      authority.issue({ file: 'admin', commonName: 'admin', organization: 'system:masters' }),
      authority.issue({ file: 'controller-manager', commonName: 'system:kube-controller-manager' }),
      authority.issue({ file: 'scheduler', commonName: 'system:kube-scheduler' }),
      writeServiceAccountKeys(folder),
    ])) as [KeyPair, KeyPair, KeyPair, KeyPair, KeyPair, undefined];
    const kubeconfig = (name: string, pair: KeyPair) =>
      writeKubeconfig(at(`${name}.conf`), url, authority, pair);
    const adminKubeconfig = await kubeconfig('admin', admin);

    const client = makeHttpClient({
      tls: {
        ca: await readFile(authority.cert),
        cert: await readFile(admin.cert),
        key: await readFile(admin.key),
      },
      connections: 4,
    });
    http = client;
    const startApiserver = async () => {
      const daemon = await start('kube-apiserver', [
        `--etcd-servers=${etcdUrl}`,
        '--bind-address=127.0.0.1',
        `--secure-port=${apiPort}`,
        // The service "kubernetes" would need an address that is not the loopback.
        '--endpoint-reconciler-type=none',
        '--service-cluster-ip-range=10.217.0.0/24',
        '--authorization-mode=Node,RBAC',
        '--enable-admission-plugins=NodeRestriction',
        '--anonymous-auth=false',
        '--allow-privileged=true',
        '--profiling=false',
        `--client-ca-file=${authority.cert}`,
        `--tls-cert-file=${serving.cert}`,
        `--tls-private-key-file=${serving.key}`,
        `--kubelet-client-certificate=${kubeletClient.cert}`,
        `--kubelet-client-key=${kubeletClient.key}`,
        '--kubelet-preferred-address-types=InternalIP,ExternalIP,Hostname',
        '--service-account-issuer=https://kubernetes.default.svc',
        `--service-account-key-file=${at('sa.pub')}`,
        `--service-account-signing-key-file=${at('sa.key')}`,
        ...apiserverOptions,
      ]);
      await waitFor('kube-apiserver', () => ready(client, `${url}/readyz`), { deadlineMs: 120_000, daemon });
      apiserver = daemon;
    };
    await waitFor('etcd', () => ready(client, `${etcdUrl}/readyz`), { deadlineMs: 60_000, daemon: etcd });
    await startApiserver();

    const makeKubeconfig = async (user: string, organization?: string) => {
      const file = user.replace(/[^a-zA-Z0-9.-]/g, '_');
      return await kubeconfig(file, await authority.issue({ file, commonName: user, organization }));
    };
    const environment = { PATH: process.env['PATH']!, HOME: folder, KUBECONFIG: adminKubeconfig };
    const tryKubectl: Cluster['tryKubectl'] = (args, options = {}) =>
      exec(programs.kubectl, args, {
        deadlineMs: 60_000,
        maxOutput: 16 << 20,
        okCodes: 'any',
        ...options,
        env: { ...environment, ...options.env },
      });
    const kubectl: Cluster['kubectl'] = async (args, options = {}) =>
      (await tryKubectl(args, { okCodes: [0], ...options })).stdout.toString('utf8');

    await Promise.all([
      start('kube-controller-manager', [
        `--kubeconfig=${await kubeconfig('controller-manager', manager)}`,
        `--root-ca-file=${authority.cert}`,
        `--service-account-private-key-file=${at('sa.key')}`,
        `--cluster-signing-cert-file=${authority.cert}`,
        `--cluster-signing-key-file=${authority.key}`,
        '--use-service-account-credentials=true',
        '--leader-elect=false',
        '--profiling=false',
        '--secure-port=0',
      ]),
      start('kube-scheduler', [
        `--kubeconfig=${await kubeconfig('scheduler', scheduler)}`,
        '--leader-elect=false',
        '--profiling=false',
        '--secure-port=0',
      ]),
      kubectl([
        ...['create', 'clusterrolebinding', 'keelson-test-kubelet-client'],
        ...['--clusterrole=system:kubelet-api-admin', '--user=kube-apiserver-kubelet-client'],
      ]),
    ]);
    // Pods are refused until the controller manager has made their service account.
    await kubectl(['wait', '--for=create', 'serviceaccount/default', '-n', 'default', '--timeout=120s'], {
      deadlineMs: 130_000,
    });

    return {
      url,
      folder,
      kubectlProgram: programs.kubectl,
      caFile: authority.cert,
      adminKubeconfig,
      admin,
      kubeletClient,
      makeKubeconfig,
      makeNodeKubeconfig: (nodeName) => makeKubeconfig(`system:node:${nodeName}`, 'system:nodes'),
      kubectl,
      tryKubectl,
      async apply(...objects) {
        const list = { apiVersion: 'v1', kind: 'List', items: objects };
        await kubectl(['apply', '-f', '-'], { input: JSON.stringify(list) });
      },
      async read<T>(path: string) {
        const response = await client.request({ method: 'GET', url: new URL(path, url) });
        const text = await response.body.text();
        if (response.statusCode === 404) return undefined;
        if (response.statusCode !== 200) throw new Error(`GET ${path}: ${response.statusCode} ${text}`);
        return JSON.parse(text) as T;
      },
      follow(args) {
        const child = spawn(programs.kubectl, args, {
          env: environment,
          stdio: ['ignore', 'pipe', 'inherit'],
        });
        const ended = new Promise<number>((resolve) => child.once('close', (code) => resolve(code ?? -1)));
        return { stdout: child.stdout, ended, stop: () => child.kill('SIGKILL') };
      },
      async stopApiserver() {
        await apiserver?.kill();
      },
      startApiserver,
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}

async function ready(http: HttpClient, url: string): Promise<true | undefined> {
  const response = await http.request({ method: 'GET', url: new URL(url), headersTimeoutMs: 5000 });
  await response.body.dump();
  return response.statusCode === 200 ? true : undefined;
}

async function writeServiceAccountKeys(folder: string): Promise<void> {
  const { publicKey, privateKey } = await promisify(generateKeyPair)('rsa', { modulusLength: 2048 });
  await writeFile(join(folder, 'sa.pub'), publicKey.export({ type: 'spki', format: 'pem' }));
  await writeFile(join(folder, 'sa.key'), privateKey.export({ type: 'pkcs1', format: 'pem' }), {
    mode: 0o600,
  });
}

async function writeKubeconfig(
  file: string,
  server: string,
  authority: Authority,
  pair: KeyPair,
): Promise<string> {
  const config = {
    apiVersion: 'v1',
    kind: 'Config',
    'current-context': 'test',
    clusters: [{ name: 'test', cluster: { server, 'certificate-authority': authority.cert } }],
    users: [{ name: 'test', user: { 'client-certificate': pair.cert, 'client-key': pair.key } }],
    contexts: [{ name: 'test', context: { cluster: 'test', user: 'test' } }],
  };
  await writeFile(file, JSON.stringify(config, null, 2), { mode: 0o600 });
  return file;
}
