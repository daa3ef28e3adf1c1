/** A runtime of a test's own on this machine: folders, bridge, cgroup and an image store with one busybox image. */
import { randomBytes } from 'node:crypto';
import { existsSync, lstatSync } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Cni, makeCni } from '../../cni/network.ts';
import type { EmbeddedImages, ImageConfig } from '../../images/service.ts';
import type { ContainerConfig, ContainerStatus, PodSandboxConfig } from '../../runtime/api.ts';
import { findProgram } from '../../runtime/context.ts';
import { detectCgroups } from '../../runtime/host/cgroups.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { openDatabase } from '../../runtime/host/database.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { umountFlags, unmount } from '../../runtime/host/syscalls.ts';
import { readMounts } from '../../runtime/oci/mounts.ts';
import { allProcesses, argumentsOf } from '../../runtime/processes.ts';
import { type EmbeddedRuntime, makeRuntime } from '../../runtime/runtime.ts';

/** Why containers cannot run here; false where they can. For `test(name, { skip: cannotRun }, …)`. */
export const cannotRun =
  process.getuid?.() !== 0
    ? 'needs root'
    : ([
        '/usr/sbin/runc',
        '/usr/bin/conmon',
        '/usr/bin/catatonit',
        '/bin/busybox',
        '/usr/lib/cni/bridge',
      ].find((path) => !existsSync(path)) ?? false);

export interface MachinePaths {
  readonly root: string;
  readonly stateDir: string;
  readonly runDir: string;
  readonly logs: string;
  readonly layer: string;
  readonly cniConf: string;
  readonly cniCache: string;
  readonly cgroup: string;
  readonly bridge: string;
}

export interface Machine extends MachinePaths {
  readonly runtime: EmbeddedRuntime;
  readonly leases: Map<string, Set<string>>;
  /** Closes this runtime and opens another on the same folders. */
  restart(): Promise<EmbeddedRuntime>;
  sandboxConfig(changes?: SandboxChanges): PodSandboxConfig;
  containerConfig(command: readonly string[], changes?: ContainerChanges): ContainerConfig;
  /** Creates and starts. */
  startContainer(sandbox: string, command: readonly string[], changes?: ContainerChanges): Promise<string>;
  exited(id: string): Promise<ContainerStatus>;
  logOf(id: string): Promise<string>;
  /** Makes crun the runtime of the handler `other`; undefined where the machine has no crun. */
  crun(): Promise<'other' | undefined>;
  /** Whatever is left of containers and sandboxes on the machine, as text; empty when all is gone. */
  leftovers(): Promise<string[]>;
}

export type SandboxChanges = Partial<Omit<PodSandboxConfig, 'linux'>> & {
  linux?: Partial<PodSandboxConfig['linux']>;
};
export type ContainerChanges = Partial<Omit<ContainerConfig, 'linux'>> & {
  linux?: {
    resources?: ContainerConfig['linux']['resources'];
    security?: Partial<ContainerConfig['linux']['security']>;
  };
};

const emptyImage: ImageConfig = {
  Env: ['PATH=/bin', 'FROM_IMAGE=yes'],
  Entrypoint: [],
  Cmd: ['sh', '-c', 'echo from-image'],
  WorkingDir: '',
  Volumes: [],
  Labels: {},
};

/** Makes the folders, the layer and the network configuration. */
export async function layOutMachine(): Promise<MachinePaths> {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  const tag = randomBytes(3).toString('hex');
  const paths: MachinePaths = {
    root,
    stateDir: join(root, 'state'),
    runDir: join(root, 'run'),
    logs: join(root, 'logs'),
    layer: join(root, 'layer'),
    cniConf: join(root, 'net.d'),
    cniCache: join(root, 'cni'),
    cgroup: `/keelson-test-${tag}`,
    bridge: `kt${tag}`,
  };
  const bin = join(paths.layer, 'bin');
  await Promise.all([bin, paths.cniConf, paths.logs].map((path) => mkdir(path, { recursive: true })));
  await Promise.all(['etc', 'tmp', 'proc', 'sys', 'dev'].map((name) => mkdir(join(paths.layer, name))));
  await copyFile('/bin/busybox', join(bin, 'busybox'));
  for (const applet of [
    ...[
      'sh',
      'sleep',
      'cat',
      'echo',
      'id',
      'env',
      'hostname',
      'ls',
      'touch',
      'grep',
      'ps',
      'kill',
      'dd',
      'head',
    ],
    ...[
      'mount',
      'true',
      'false',
      'seq',
      'stat',
      'pwd',
      'tail',
      'ip',
      'wget',
      'chmod',
      'tr',
      'yes',
      'ping',
      'wc',
    ],
    ...['stty', 'tty', 'nc', 'httpd', 'mkdir'],
  ]) {
    await symlink('busybox', join(bin, applet));
  }
  await writeFile(
    join(paths.layer, 'etc/passwd'),
    'root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1001::/:/bin/sh\n',
  );
  await writeFile(join(paths.layer, 'etc/group'), 'root:x:0:\nweb:x:1001:\nmedia:x:44:web\nlate:x:45:root\n');
  await writeFile(join(paths.layer, 'bin/not-executable'), 'x');
  const third = Number.parseInt(tag.slice(0, 2), 16);
  const second = 128 + (Number.parseInt(tag.slice(2, 4), 16) % 100);
  await writeFile(
    join(paths.cniConf, '10-test.conflist'),
    JSON.stringify({
      cniVersion: '1.0.0',
      name: `keelson-test-${tag}`,
      plugins: [
        {
          type: 'bridge',
          bridge: paths.bridge,
          isGateway: true,
          ipam: {
            type: 'host-local',
            dataDir: join(root, 'ipam'),
            ranges: [[{ subnet: `10.${second}.${third}.0/24` }]],
            routes: [{ dst: '0.0.0.0/0' }],
          },
        },
      ],
    }),
  );
  return paths;
}

/** An image store whose one image, `busybox`, is the layer; leases as a map from image to holders. */
export function fakeImages(
  layer: string,
  leases: Map<string, Set<string>>,
  config: Partial<ImageConfig> = {},
): EmbeddedImages {
  const id = `sha256:${'b'.repeat(64)}`;
  const unused = () => Promise.reject(new KeelsonError('UNIMPLEMENTED', 'not a part of this test'));
  return {
    listImages: unused,
    imageStatus: unused,
    pullImage: unused,
    removeImage: unused,
    importImages: unused,
    exportImages: unused,
    imageFsInfo: unused,
    verifyImages: unused,
    imageUse: () => [],
    collectImage: () => false,
    collectLayers: () => 0,
    events: () => () => {},
    fetchMetrics: () => {
      throw new KeelsonError('UNIMPLEMENTED', 'not a part of this test');
    },
    async forContainer(image) {
      if (image !== 'busybox' && image !== id) {
        throw new KeelsonError('IMAGE_NOT_PRESENT', `image ${image} is not here`);
      }
      return {
        id,
        layers: [layer],
        config: { ...emptyImage, ...config },
        digestRef: `test/busybox@sha256:${'c'.repeat(64)}`,
      };
    },
    lease(imageId, holder) {
      leases.set(imageId, (leases.get(imageId) ?? new Set()).add(holder));
    },
    release(holder) {
      for (const holders of leases.values()) holders.delete(holder);
    },
    close: async () => {},
  };
}

/** Opens database, network and runtime on the folders. */
export async function openRuntime(
  paths: MachinePaths,
  leases = new Map<string, Set<string>>(),
  image: Partial<ImageConfig> = {},
): Promise<{ runtime: EmbeddedRuntime; cni: Cni; close(): Promise<void> }> {
  const log = makeLogger((process.env['KEELSON_TEST_LOG'] as 'debug' | undefined) ?? 'silent');
  const db = openDatabase(join(paths.stateDir, 'state.db'));
  const cni = makeCni({
    confDirs: [paths.cniConf],
    binDirs: ['/usr/lib/cni'],
    cacheDir: paths.cniCache,
    log,
  });
  const runtime = await makeRuntime({
    db,
    stateDir: paths.stateDir,
    runDir: paths.runDir,
    images: fakeImages(paths.layer, leases, image),
    cni,
    log,
    clock: systemClock,
    cdiFolders: [join(paths.root, 'cdi-etc'), join(paths.root, 'cdi-run')],
    handlers: {
      runc: { path: process.env['KEELSON_TEST_RUNC'] ?? 'runc' },
      // There where a test makes it.
      other: { path: join(paths.root, 'other-runtime') },
    },
    version: '0.0.0-test',
  });
  return {
    runtime,
    cni,
    async close() {
      await runtime.close();
      cni.close();
      db.close();
    },
  };
}

/** Sandbox and container configurations as the agent makes them. */
export function configsFor(paths: MachinePaths) {
  let pods = 0;
  return {
    sandboxConfig({ linux, ...changes }: SandboxChanges = {}): PodSandboxConfig {
      const uid = `uid-${++pods}-${randomBytes(4).toString('hex')}`;
      return {
        metadata: { name: 'pod', uid, namespace: 'default', attempt: 0 },
        hostname: 'pod',
        logDirectory: join(paths.logs, uid),
        dns: { servers: ['10.0.0.10'], searches: ['default.svc'], options: ['ndots:5'] },
        portMappings: [],
        labels: { app: 'test' },
        annotations: {},
        ...changes,
        linux: {
          cgroupParent: `${paths.cgroup}/${uid}`,
          sysctls: {},
          security: { namespaces: { network: 'node', pid: 'container', ipc: 'pod' } },
          ...linux,
        },
      };
    },
    containerConfig(
      command: readonly string[],
      { linux, ...changes }: ContainerChanges = {},
    ): ContainerConfig {
      return {
        metadata: { name: 'main', attempt: 0 },
        image: { image: 'busybox' },
        command,
        args: [],
        workingDir: '',
        envs: [],
        mounts: [],
        labels: {},
        annotations: {},
        logPath: `${changes.metadata?.name ?? 'main'}/${changes.metadata?.attempt ?? 0}.log`,
        ...changes,
        linux: {
          resources: linux?.resources ?? {},
          security: {
            namespaces: { network: 'node', pid: 'container', ipc: 'pod' },
            ...linux?.security,
          },
        },
      };
    },
  };
}

/** Waits for the end of a container by its event. */
export function whenExited(
  runtime: EmbeddedRuntime,
  id: string,
  deadlineMs = 20_000,
): Promise<ContainerStatus> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      end();
      reject(new Error(`container ${id} did not exit within ${deadlineMs} ms`));
    }, deadlineMs);
    const look = () =>
      runtime.containerStatus(id).then((status) => {
        if (status.state !== 'exited') return;
        clearTimeout(timer);
        end();
        resolve(status);
      }, reject);
    const end = runtime.containerEvents((event) => {
      if (event.containerId === id) void look();
    });
    void look();
  });
}

/** Cgroups of containers and sandboxes below `path`; others may be going away meanwhile. */
async function groupsBelow(path: string): Promise<string[]> {
  const entries = await readdir(path, { withFileTypes: true }).catch(() => []);
  const folders = entries.filter((entry) => entry.isDirectory()).map(({ name }) => join(path, name));
  const below = await Promise.all(folders.map(groupsBelow));
  return [...folders.filter((folder) => /\/[0-9a-f]{64}$/.test(folder)), ...below.flat()];
}

/** What is on the machine below the test's folders, cgroup and bridge. */
export async function leftoversOf(paths: MachinePaths): Promise<string[]> {
  const found: string[] = [];
  for (const { path } of readMounts()) if (path.startsWith(`${paths.root}/`)) found.push(`mount ${path}`);
  for (const pid of allProcesses()) {
    const args = argumentsOf(pid);
    if (pid !== process.pid && args.some((arg) => arg.includes(paths.root))) {
      found.push(`process ${pid} ${args.slice(0, 3).join(' ')}`);
    }
  }
  for (const hierarchy of await readdir('/sys/fs/cgroup')) {
    const top = join('/sys/fs/cgroup', hierarchy);
    if (!lstatSync(top).isDirectory()) continue;
    for (const path of [join(top, paths.cgroup), join('/sys/fs/cgroup', paths.cgroup)]) {
      if (!existsSync(path)) continue;
      for (const name of await groupsBelow(path)) found.push(`cgroup ${name}`);
    }
  }
  for (const [folder, keep] of [
    [join(paths.runDir, 'sandboxes'), []],
    [join(paths.runDir, 'containers'), []],
    [join(paths.runDir, 'exits'), []],
    [join(paths.runDir, 'oci/runc'), []],
    [join(paths.runDir, 'oci/other'), []],
    [join(paths.stateDir, 'containers'), []],
    [join(paths.root, 'ipam', `keelson-test-${paths.bridge.slice(2)}`), ['last_reserved_ip.0', 'lock']],
  ] as const) {
    const names = await readdir(folder).catch(() => []);
    for (const name of names)
      if (!(keep as readonly string[]).includes(name)) found.push(`file ${folder}/${name}`);
  }
  return found;
}

/** Ends every process and mount of the machine, whatever state it is in, and removes the folders. */
export async function tearDown(paths: MachinePaths): Promise<void> {
  for (const pid of allProcesses()) {
    const args = argumentsOf(pid);
    if (args[0]?.endsWith('conmon') && args.some((arg) => arg.includes(paths.root))) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Gone meanwhile.
      }
    }
  }
  const cgroups = detectCgroups();
  await cgroups.kill(paths.cgroup);
  for (const { path } of readMounts().reverse()) {
    if (path.startsWith(`${paths.root}/`)) unmount(path, umountFlags.DETACH);
  }
  await cgroups.remove(paths.cgroup);
  if (existsSync(`/sys/class/net/${paths.bridge}`)) {
    await exec('ip', ['link', 'delete', paths.bridge], { deadlineMs: 10_000 });
  }
  await rm(paths.root, { recursive: true, force: true });
}

/** A machine that is torn down at the end of the test. */
export async function makeMachine(t: TestContext, image: Partial<ImageConfig> = {}): Promise<Machine> {
  const paths = await layOutMachine();
  const leases = new Map<string, Set<string>>();
  let open = await openRuntime(paths, leases, image);
  t.after(async () => {
    await open.close().catch(() => {});
    await tearDown(paths);
  });
  const configs = configsFor(paths);
  return {
    ...paths,
    ...configs,
    leases,
    get runtime() {
      return open.runtime;
    },
    async restart() {
      await open.close();
      open = await openRuntime(paths, leases, image);
      return open.runtime;
    },
    async startContainer(sandbox, command, changes) {
      const id = await open.runtime.createContainer(sandbox, configs.containerConfig(command, changes));
      await open.runtime.startContainer(id);
      return id;
    },
    exited: (id) => whenExited(open.runtime, id),
    logOf: async (id) => readFile((await open.runtime.containerStatus(id)).logPath, 'utf8'),
    async crun() {
      const crun = findProgram('crun');
      if (crun === undefined) return undefined;
      await writeFile(join(paths.root, 'other-runtime'), crunScript(crun), { mode: 0o755 });
      return 'other';
    },
    leftovers: () => leftoversOf(paths),
  };
}

/** crun refuses machines with both kinds of cgroups: there it sees only one of them. */
function crunScript(crun: string): string {
  const alone = `umount /sys/fs/cgroup/unified && exec ${crun} "$@"`;
  return existsSync('/sys/fs/cgroup/unified')
    ? `#!/bin/sh\nexec unshare --mount --propagation slave sh -c '${alone}' crun "$@"\n`
    : `#!/bin/sh\nexec ${crun} "$@"\n`;
}
