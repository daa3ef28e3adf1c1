/**
 * A keelson node as a process of its own, with its own folders, cgroup, bridge, addresses and ports, so that many
 * can run beside each other and beside a real node, and a cleanup that also removes what a killed one leaves.
 */
import { randomBytes } from 'node:crypto';
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { removeTree } from '../../runtime/host/files.ts';
import { endNode, removeNodeTraces, tracesOfNode } from './node-traces.ts';
import { type Daemon, freePorts, startDaemon, waitFor } from './process.ts';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '../..');

export interface TestNodeOptions {
  /** Default `keelson-test-<random>`. */
  readonly name?: string;
  /** Path of a kubeconfig, or a function that gets the node's name and folder and makes one. None: static pods only. */
  readonly kubeconfig?: string | ((node: { name: string; folder: string }) => Promise<string>);
  /** Fields over the defaults below; `keelson` is merged too. */
  readonly config?: Readonly<Record<string, unknown>> & {
    readonly keelson?: Readonly<Record<string, unknown>>;
  };
  /** Do not start the process: the caller does with `start()`. */
  readonly start?: false;
  /** No CNI configuration: a node without a network. */
  readonly network?: false;
  readonly args?: readonly string[];
  /** Only the runtime, for a kubelet of others. Default `agent`. */
  readonly command?: 'agent' | 'runtime';
  readonly env?: Readonly<Record<string, string>>;
}

/** Everything that belongs to the node alone. */
export interface TestNodePaths {
  /** Holds all the others. */
  readonly folder: string;
  readonly stateDir: string;
  readonly runDir: string;
  readonly kubeletDir: string;
  readonly podLogsDir: string;
  readonly containerLogsDir: string;
  readonly cniConfDir: string;
  readonly cniCacheDir: string;
  /** Where host-local keeps the addresses that are given out. */
  readonly ipamDir: string;
  /** A static pod manifest put here runs. */
  readonly staticPodPath: string;
  readonly configFile: string;
  readonly logFile: string;
}

export interface TestNode {
  readonly name: string;
  readonly paths: TestNodePaths;
  /** `/keelson-test-<random>`, or systemd's slice of that name, below which all the pods' cgroups are. */
  readonly cgroupRoot: string;
  readonly bridge: string;
  /** `10.x.y`: pods have addresses in `10.x.y.0/24`. */
  readonly subnet: string;
  readonly ports: { readonly api: number; readonly healthz: number };
  /** The agent's process now; throws FAILED_PRECONDITION while there is none. */
  readonly agent: Daemon;
  /** `args`: besides those of the options. */
  start(args?: readonly string[]): Promise<void>;
  /** KILL, as a crash; containers go on. */
  kill9(): Promise<void>;
  /** KILL and a new start at once. */
  restart9(args?: readonly string[]): Promise<void>;
  /** As a power cut: nothing runs, is mounted or linked any more, and what is in `runDir` is gone. Start it then. */
  losePower(): Promise<void>;
  /** TERM and the wait for its end. */
  stop(): Promise<void>;
  /** The end of the agent's log. */
  log(bytes?: number): Promise<string>;
  /**
   * What of pods is on the machine now, one line each, sorted: mounts, namespace pins, cgroups, processes, network
   * links, addresses given out, firewall chains, pod and log folders. The same list before a pod came and after it
   * has gone is the proof that it left nothing.
   */
  traces(): Promise<string[]>;
  /** Waits until `traces()` is `wanted`; throws DEADLINE_EXCEEDED with what is too much. */
  tracesBecome(wanted: readonly string[], deadlineMs?: number): Promise<void>;
  /** Ends the agent and removes everything of the node from the machine, whatever state it is in. */
  cleanup(): Promise<void>;
}

/** Folders, CNI configuration, configuration file, and the agent started. Call `cleanup()` also after a failure. */
export async function startNode(options: TestNodeOptions = {}): Promise<TestNode> {
  const id = randomBytes(3).toString('hex');
  const name = options.name ?? `keelson-test-${id}`;
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  const paths: TestNodePaths = {
    folder,
    stateDir: join(folder, 'state'),
    runDir: join(folder, 'run'),
    kubeletDir: join(folder, 'kubelet'),
    podLogsDir: join(folder, 'log/pods'),
    containerLogsDir: join(folder, 'log/containers'),
    cniConfDir: join(folder, 'cni/net.d'),
    cniCacheDir: join(folder, 'cni/cache'),
    ipamDir: join(folder, 'cni/ipam'),
    staticPodPath: join(folder, 'manifests'),
    configFile: join(folder, 'config.json'),
    logFile: join(folder, 'agent.log'),
  };
  const systemd = options.config?.['cgroupDriver'] === 'systemd';
  const cgroupRoot = systemd ? `/keelson_test_${id}.slice` : `/keelson-test-${id}`;
  const bridge = `kt${id}`;
  const number = Number.parseInt(id, 16);
  const subnet = `10.${128 + (number % 64)}.${(number >> 6) % 256}`;
  const network = `keelson-test-${id}`;
  const own = { folder, cgroupRoot, bridge, network };
  let agent: Daemon | undefined;
  try {
    const [api, healthz] = (await freePorts(2)) as [number, number];
    for (const path of [paths.cniConfDir, paths.staticPodPath]) await mkdir(path, { recursive: true });
    if (options.network !== false) {
      const conflist = networkConfig({ network, bridge, subnet, ipamDir: paths.ipamDir });
      await writeFile(join(paths.cniConfDir, '10-test.conflist'), JSON.stringify(conflist, null, 2));
    }
    const { keelson, ...kubelet } = options.config ?? {};
    const config = {
      kind: 'KubeletConfiguration',
      apiVersion: 'kubelet.config.k8s.io/v1beta1',
      port: api,
      healthzPort: healthz,
      readOnlyPort: 0,
      cgroupDriver: 'cgroupfs',
      cgroupRoot: `/keelson-test-${id}`,
      failSwapOn: false,
      podLogsDir: paths.podLogsDir,
      staticPodPath: paths.staticPodPath,
      ...kubelet,
      keelson: {
        stateDir: paths.stateDir,
        runDir: paths.runDir,
        kubeletDir: paths.kubeletDir,
        containerLogsDir: paths.containerLogsDir,
        cniConfDirs: [paths.cniConfDir],
        cniBinDirs: ['/opt/cni/bin', '/usr/lib/cni'],
        cniCacheDir: paths.cniCacheDir,
        ...keelson,
      },
    };
    // JSON is YAML.
    await writeFile(paths.configFile, JSON.stringify(config, null, 2));
    const kubeconfig =
      typeof options.kubeconfig === 'function'
        ? await options.kubeconfig({ name, folder })
        : options.kubeconfig;

    const running = () => {
      if (agent === undefined) throw new Error(`the agent of ${name} has not been started`);
      return agent;
    };
    const node: TestNode = {
      name,
      paths,
      cgroupRoot,
      bridge,
      subnet,
      ports: { api, healthz },
      get agent() {
        return running();
      },
      async start(args = []) {
        agent = await startDaemon(
          join(root, 'packaging/keelson'),
          options.command === 'runtime'
            ? ['runtime', '--config', paths.configFile]
            : [
                'agent',
                ...['--config', paths.configFile],
                ...(kubeconfig === undefined ? [] : ['--kubeconfig', kubeconfig]),
                ...['--hostname-override', name],
                ...(options.args ?? []),
                ...args,
              ],
          { logFile: paths.logFile, env: options.env },
        );
      },
      kill9: () => running().kill(),
      async restart9(args) {
        await node.kill9();
        await node.start(args);
      },
      async losePower() {
        await node.kill9();
        await endNode(own);
        await removeTree(paths.runDir);
      },
      stop: () => running().stop(),
      log: (bytes) => running().tail(bytes),
      traces: () => tracesOfNode(own, paths),
      async tracesBecome(wanted, deadlineMs = 30_000) {
        let left: string[] = [];
        let missing: string[] = [];
        await waitFor(
          `the traces of pods on ${name}`,
          async () => {
            const now = await node.traces();
            left = now.filter((trace) => !wanted.includes(trace));
            missing = wanted.filter((trace) => !now.includes(trace));
            return left.length + missing.length === 0 ? true : undefined;
          },
          { deadlineMs, everyMs: 200 },
        ).catch((error: unknown) => {
          throw new Error(
            `left behind:\n${left.join('\n')}${missing.length === 0 ? '' : `\nmissing:\n${missing.join('\n')}`}`,
            { cause: error },
          );
        });
      },
      async cleanup() {
        await agent?.kill();
        await removeNodeTraces(own);
      },
    };
    if (options.start !== false) await node.start();
    return node;
  } catch (error) {
    await agent?.kill();
    await removeNodeTraces(own);
    throw error;
  }
}

/** A bridge of its own with host ports, as most small clusters have it. */
function networkConfig(options: { network: string; bridge: string; subnet: string; ipamDir: string }) {
  return {
    cniVersion: '1.0.0',
    name: options.network,
    plugins: [
      {
        type: 'bridge',
        bridge: options.bridge,
        isGateway: true,
        hairpinMode: true,
        ipam: {
          type: 'host-local',
          dataDir: options.ipamDir,
          ranges: [[{ subnet: `${options.subnet}.0/24` }]],
          routes: [{ dst: '0.0.0.0/0' }],
        },
      },
      { type: 'portmap', capabilities: { portMappings: true } },
    ],
  };
}
