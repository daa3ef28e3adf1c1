/** A node's volumes with the kind for CSI, a driver that is registered, and an apiserver of plain maps. */
import { mkdtemp, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import type { ApiserverClient, Pod, Volume } from '../../../../agent/apiserver/types.ts';
import { type CsiDrivers, makeCsiDrivers } from '../../../../agent/volumes/csi/drivers.ts';
import { makeExpander } from '../../../../agent/volumes/csi/expand.ts';
import { makeCsiFacts } from '../../../../agent/volumes/csi/facts.ts';
import { makeVolumesInUse, type VolumesInUse } from '../../../../agent/volumes/csi/in_use.ts';
import { csiKind } from '../../../../agent/volumes/csi/kind.ts';
import { makeVolumes } from '../../../../agent/volumes/manager.ts';
import { mountsBelow, unmountBelow } from '../../../../agent/volumes/mounts.ts';
import { makeTokens } from '../../../../agent/volumes/tokens.ts';
import type { VolumeManager } from '../../../../agent/volumes/types.ts';
import type { Clock } from '../../../../runtime/host/clock.ts';
import { KeelsonError } from '../../../../runtime/host/errors.ts';
import { makeLogger } from '../../../../runtime/host/log.ts';
import { type FakeCsiDriver, type FakeCsiOptions, startCsiDriver } from '../../../peers/csi-driver.ts';

export const driverName = 'test.csi.example';

export interface CsiStage {
  readonly kubeletDir: string;
  readonly driver: FakeCsiDriver;
  /** Objects by their paths. */
  readonly objects: Map<string, object>;
  readonly patches: { readonly path: string; readonly body: object }[];
  readonly events: string[];
  readonly clock: Clock & { advance(ms: number): void };
  volumes: VolumeManager;
  readonly drivers: CsiDrivers;
  /** As after a new start of the node: nothing is in memory, the driver may have registered again or not. */
  restart(options?: { readonly registered?: boolean }): Promise<void>;
  register(): Promise<void>;
  /** The next process, whose drivers have registered again. */
  next(): Promise<void>;
  /** Mounts below kubelet's folder, relative. */
  mounts(): Promise<string[]>;
}

/** Time by hand; waits are over at once and let the time pass. */
function quickClock(): Clock & { advance(ms: number): void } {
  let passed = 0;
  return {
    now: () => Date.UTC(2026, 0, 1) + passed,
    monotonic: () => passed,
    after(ms, body) {
      const timer = setImmediate(() => {
        passed += ms;
        body();
      });
      return () => clearImmediate(timer);
    },
    advance: (ms) => {
      passed += ms;
    },
  };
}

export async function csiStage(
  t: TestContext,
  options: Partial<FakeCsiOptions> & {
    readonly spec?: object | null;
    readonly fileContext?: string;
    /** Each call of the driver and of the apiserver is made through this. */
    readonly around?: <T>(call: () => Promise<T>) => Promise<T>;
  } = {},
): Promise<CsiStage> {
  const base = await realpath(await mkdtemp(join(tmpdir(), 'keelson-test-csi-')));
  const kubeletDir = join(base, 'kubelet');
  const socket = join(base, 'csi.sock');
  const driver = await startCsiDriver({ socket, stateDir: base, ...options });
  t.after(async () => {
    await driver.close();
    await unmountBelow(base);
    await rm(base, { recursive: true, force: true });
  });
  const objects = new Map<string, object>();
  if (options.spec !== null)
    objects.set(`/apis/storage.k8s.io/v1/csidrivers/${driverName}`, {
      spec: {
        attachRequired: false,
        fsGroupPolicy: 'ReadWriteOnceWithFSType',
        volumeLifecycleModes: ['Persistent', 'Ephemeral'],
        ...options.spec,
      },
    });
  const patches: CsiStage['patches'] = [];
  const events: string[] = [];
  const clock = quickClock();
  const { around = (call) => call() } = options;
  const plain = {
    async get(path: string) {
      const found = objects.get(path);
      if (found !== undefined) return found;
      throw new KeelsonError('API_STATUS', `GET ${path}: not found`, {
        details: { status: 404, reason: 'NotFound' },
      });
    },
    async patch(path: string, _type: string, body: object) {
      patches.push({ path, body });
      return {};
    },
    async create(_path: string, body: { spec: { audiences: string[]; expirationSeconds: number } }) {
      const exp = Math.floor(clock.now() / 1000) + body.spec.expirationSeconds;
      const claims = Buffer.from(JSON.stringify({ exp, aud: body.spec.audiences })).toString('base64url');
      return {
        spec: body.spec,
        status: { token: `x.${claims}.y`, expirationTimestamp: new Date(exp * 1000).toISOString() },
      };
    },
  };
  const through =
    <Args extends unknown[], T>(call: (...args: Args) => Promise<T>) =>
    (...args: Args) =>
      around(() => call(...args));
  const client = {
    get: through(plain.get),
    patch: through(plain.patch),
    create: through(plain.create),
  } as unknown as ApiserverClient;
  const log = makeLogger('silent');
  let drivers = makeCsiDrivers(undefined);
  const plugin = { name: driverName, endpoint: socket, versions: ['1.0.0'], socket };
  const recorder = {
    event: (about: { kind: string }, type: string, reason: string, message: string) =>
      void events.push(`${about.kind} ${type} ${reason} ${message}`),
  };
  let inUse: VolumesInUse;
  const guarded: CsiDrivers = {
    handler: drivers.handler,
    close: () => {},
    get(name) {
      const driver = drivers.get(name);
      return { name, call: through(driver.call) as typeof driver.call, can: through(driver.can) };
    },
  };
  const make = (): VolumeManager => {
    inUse = makeVolumesInUse({ kubeletDir, client, nodeName: 'n', clock, log });
    const facts = makeCsiFacts({ client, nodeName: 'n', tokens: makeTokens({ client, clock, log }), clock });
    const kind = csiKind({
      kubeletDir,
      nodeName: 'n',
      drivers: options.around === undefined ? drivers : guarded,
      facts,
      inUse,
      expander: makeExpander({ kubeletDir, client, facts, events: recorder, clock, log }),
      fileContext: async () => options.fileContext,
      clock,
      log,
      random: () => 0,
      warn: (_pod, reason, message) => void events.push(`Pod Warning ${reason} ${message}`),
    });
    return makeVolumes({
      kinds: [kind],
      kubeletDir,
      client,
      objects: undefined as never,
      nodeName: 'n',
      log,
      clock,
    });
  };
  const register = () => drivers.handler.register(plugin, AbortSignal.timeout(20_000));
  await register();
  t.after(() => drivers.close());
  const stage: CsiStage = {
    kubeletDir,
    driver,
    objects,
    patches,
    events,
    clock,
    volumes: make(),
    get drivers() {
      return drivers;
    },
    register,
    async restart({ registered = true } = {}) {
      drivers.close();
      drivers = makeCsiDrivers(undefined);
      stage.volumes = make();
      if (registered) await register();
    },
    async next() {
      inUse.close();
      stage.volumes = make();
      await inUse.sync();
    },
    mounts: async () => (await mountsBelow(base)).map((path) => path.replace(`${base}/`, '')),
  };
  return stage;
}

/** A bound claim and its volume; `changes` are for the volume's spec, `csi` for its source. */
export function addVolume(
  { objects }: CsiStage,
  name: string,
  changes: { readonly csi?: object; readonly claim?: object; readonly [field: string]: unknown } = {},
): void {
  const { csi, claim, ...spec } = changes;
  objects.set(`/api/v1/persistentvolumes/pv-${name}`, {
    metadata: { name: `pv-${name}`, uid: `uid-pv-${name}` },
    spec: {
      accessModes: ['ReadWriteOnce'],
      capacity: { storage: '1Gi' },
      claimRef: { namespace: 'ns', name, uid: `uid-${name}` },
      csi: { driver: driverName, volumeHandle: `handle-${name}`, fsType: 'ext4', ...csi },
      ...spec,
    },
  });
  objects.set(`/api/v1/namespaces/ns/persistentvolumeclaims/${name}`, {
    metadata: { name, namespace: 'ns', uid: `uid-${name}`, resourceVersion: '7' },
    spec: { volumeName: `pv-${name}`, accessModes: ['ReadWriteOnce'] },
    status: { phase: 'Bound', capacity: { storage: '1Gi' } },
    ...claim,
  });
}

export function podWith(uid: string, volumes: Volume[], spec: object = {}, devices: string[] = []): Pod {
  return {
    metadata: { name: uid, namespace: 'ns', uid },
    spec: {
      serviceAccountName: 'robot',
      containers: [
        {
          name: 'c',
          volumeMounts: volumes
            .filter(({ name }) => !devices.includes(name))
            .map(({ name }) => ({ name, mountPath: `/${name}` })),
          volumeDevices: devices.map((name) => ({ name, devicePath: `/dev/${name}` })),
        },
      ],
      volumes,
      ...spec,
    },
  };
}

export const claimed = (name: string, readOnly = false): Volume => ({
  name,
  persistentVolumeClaim: { claimName: name, readOnly },
});
export const inline = (name: string, changes: object = {}): Volume => ({
  name,
  csi: { driver: driverName, ...changes },
});
