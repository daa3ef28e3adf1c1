/** A cluster of plain maps: an object cache and a client that grants tokens, both of which can be made to fail. */
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { ApiserverClient, ConfigMap, ObjectCache, Pod, Secret } from '../../../agent/apiserver/types.ts';
import { makeVolumes } from '../../../agent/volumes/manager.ts';
import { unmountBelow } from '../../../agent/volumes/mounts.ts';
import type { VolumeManager } from '../../../agent/volumes/types.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { type Logger, makeLogger } from '../../../runtime/host/log.ts';

export interface HandClock extends Clock {
  advance(ms: number): void;
}

/** A clock that only moves by hand; its timers are never due. */
export function handClock(start = Date.UTC(2026, 0, 1)): HandClock {
  let passed = 0;
  return {
    now: () => start + passed,
    monotonic: () => passed,
    after: () => () => {},
    advance: (ms) => {
      passed += ms;
    },
  };
}

export interface TokenCall {
  readonly path: string;
  readonly spec: {
    readonly audiences: readonly string[];
    readonly expirationSeconds: number;
    readonly boundObjectRef: { readonly kind: string; readonly name: string; readonly uid: string };
  };
}

export interface FakeClient extends ApiserverClient {
  readonly calls: TokenCall[];
  failure: Error | undefined;
  /** Seconds that are granted whatever is asked for. */
  granted: number | undefined;
  /** What is answered instead of a token. */
  answer: unknown;
}

export function fakeClient(clock: Clock): FakeClient {
  const never = () => {
    throw new Error('not called by volumes');
  };
  const client: FakeClient = {
    calls: [],
    failure: undefined,
    granted: undefined,
    answer: undefined,
    get: never,
    list: never,
    replace: never,
    patch: never,
    delete: never,
    watch: never,
    requests: new Map(),
    close: async () => {},
    async create<T>(path: string, body: object): Promise<T> {
      const { spec } = body as TokenCall;
      client.calls.push({ path, spec });
      await new Promise((resolve) => setImmediate(resolve));
      if (client.failure !== undefined) throw client.failure;
      if (client.answer !== undefined) return client.answer as T;
      const expirationSeconds = client.granted ?? spec.expirationSeconds;
      const iat = Math.floor(clock.now() / 1000);
      const claims = {
        iat,
        exp: iat + expirationSeconds,
        'kubernetes.io': { pod: { name: spec.boundObjectRef.name, uid: spec.boundObjectRef.uid } },
        number: client.calls.length,
      };
      const part = (value: object) => Buffer.from(JSON.stringify(value)).toString('base64url');
      return {
        spec: { ...spec, expirationSeconds },
        status: { token: `${part({ alg: 'none' })}.${part(claims)}.sig` },
      } as T;
    },
  };
  return client;
}

export interface FakeObjects extends ObjectCache {
  readonly configmaps: Map<string, ConfigMap>;
  readonly secrets: Map<string, Secret>;
  failure: Error | undefined;
}

export function fakeObjects(): FakeObjects {
  const objects: FakeObjects = {
    configmaps: new Map(),
    secrets: new Map(),
    failure: undefined,
    async get<T>(kind: 'configmaps' | 'secrets', namespace: string, name: string): Promise<T> {
      if (objects.failure !== undefined) throw objects.failure;
      const found = objects[kind].get(`${namespace}/${name}`);
      if (found !== undefined) return found as T;
      throw new KeelsonError('API_STATUS', `${kind} "${name}" not found`, {
        details: { status: 404, reason: 'NotFound' },
      });
    },
    services: async () => [],
    retain: () => {},
    release: () => {},
  };
  return objects;
}

export const unreachable = new KeelsonError('API_UNREACHABLE', 'connection refused');

export interface Bench {
  readonly kubeletDir: string;
  readonly clock: HandClock;
  readonly client: FakeClient;
  readonly objects: FakeObjects;
  readonly warnings: string[];
  readonly volumes: VolumeManager;
  /** A manager as a new process would have it: same disk, empty memory. */
  restart(): VolumeManager;
  /** Folder of a volume. */
  at(uid: string, kind: string, name: string): string;
}

/** A temporary folder whose mounts are gone after the test. */
export async function scratch(t: TestContext): Promise<string> {
  const folder = await realpath(await mkdtemp(join(tmpdir(), 'keelson-test-volumes-')));
  t.after(async () => {
    await unmountBelow(folder);
    await rm(folder, { recursive: true, force: true });
  });
  return folder;
}

export async function bench(t: TestContext): Promise<Bench> {
  const kubeletDir = await scratch(t);
  const clock = handClock();
  const client = fakeClient(clock);
  const objects = fakeObjects();
  objects.configmaps.set('ns/kube-root-ca.crt', { data: { 'ca.crt': 'CERTIFICATE' } });
  const warnings: string[] = [];
  const log: Logger = makeLogger('silent');
  log.warn = (...args: unknown[]) => void warnings.push(String(args.at(-1)));
  const restart = () =>
    makeVolumes({
      kubeletDir,
      client,
      objects,
      nodeName: 'node',
      log,
      clock,
      allocatable: () => ({ cpu: '4', memory: '8Gi' }),
      random: () => 0,
    });
  return {
    kubeletDir,
    clock,
    client,
    objects,
    warnings,
    volumes: restart(),
    restart,
    at: (uid, kind, name) => join(kubeletDir, 'pods', uid, 'volumes', `kubernetes.io~${kind}`, name),
  };
}

/** All volumes are mounted, unless the first container has mounts of its own. */
export function podOf(spec: Partial<NonNullable<Pod['spec']>>, uid = 'uid-1'): Pod {
  const [first, ...others] = spec.containers ?? [{ name: 'main', image: 'i' }];
  const volumeMounts = (spec.volumes ?? []).map(({ name }) => ({ name, mountPath: `/${name}` }));
  return {
    metadata: { name: 'web', namespace: 'ns', uid, labels: { app: 'web' } },
    spec: { serviceAccountName: 'robot', ...spec, containers: [{ volumeMounts, ...first! }, ...others] },
  };
}

/** The volume that the apiserver adds to every pod. */
export const apiAccess = {
  name: 'kube-api-access',
  projected: {
    defaultMode: 0o644,
    sources: [
      { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
      { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
      {
        downwardAPI: {
          items: [{ path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } }],
        },
      },
    ],
  },
};

/** Mounting needs root. */
export const asRoot = process.getuid?.() === 0 ? false : 'needs root to mount';

/** The pod that `churn.ts` works on. */
export const churned = podOf(
  {
    volumes: [
      apiAccess,
      { name: 'root', configMap: { name: 'kube-root-ca.crt' } },
      { name: 'disk', emptyDir: {} },
      { name: 'memory', emptyDir: { medium: 'Memory' } },
    ],
    securityContext: { fsGroup: 3000 },
  },
  'churned',
);
