/** Opens the runtime of the node: the one inside keelson, or that of somebody else. */
import { join } from 'node:path';
import { makeCni } from '../../cni/network.ts';
import { makePodCidrs } from '../../cni/template.ts';
import type { makeImages } from '../../images/service.ts';
import { serveCri } from '../../runtime/cri/serve.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Database } from '../../runtime/host/database.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { makeRuntime } from '../../runtime/runtime.ts';
import type { AgentConfig } from '../config/load.ts';
import { version } from '../version.ts';

/** The runtime inside keelson with its networks, served over the CRI as configured. */
export async function openRuntime(
  config: AgentConfig,
  parts: {
    readonly db: Database;
    readonly images: Awaited<ReturnType<typeof makeImages>>;
    readonly log: Logger;
    readonly clock: Clock;
    after(close: () => Promise<void> | void): void;
  },
) {
  const { keelson } = config;
  const { db, images, log, clock, after } = parts;
  const cni = makeCni({
    confDirs: keelson.cniConfDirs,
    binDirs: keelson.cniBinDirs,
    cacheDir: keelson.cniCacheDir,
    log: log.child({ room: 'cni' }),
  });
  after(() => cni.close());
  const podCidrs = makePodCidrs({
    template: keelson.cniConfTemplate,
    confDirs: keelson.cniConfDirs,
    log: log.child({ room: 'cni' }),
  });
  const runtime = await makeRuntime({
    db,
    stateDir: keelson.stateDir,
    runDir: keelson.runDir,
    images,
    cni,
    log: log.child({ room: 'runtime' }),
    clock,
    handlers: keelson.runtimes,
    conmon: keelson.conmon,
    selinux: keelson.selinux,
    mountFolders: [keelson.kubeletDir],
    cgroupDriver: config.cgroupDriver,
    version,
  });
  after(() => runtime.close());
  for (const condition of await runtime.status()) {
    if (!condition.status) log.error({ condition: condition.type }, condition.message);
  }
  const criSocket = keelson.criSocket ?? join(keelson.runDir, 'keelson.sock');
  if (criSocket !== '') {
    const cri = await serveCri({
      socket: criSocket,
      runtime,
      images,
      log: log.child({ room: 'cri' }),
      clock,
      streaming: { idleMs: config.streamingConnectionIdleTimeout },
      podCidrs,
      info: async () => ({
        config: { ...keelson, cgroupDriver: config.cgroupDriver },
        cniconfig: { PluginDirs: keelson.cniBinDirs, PluginConfDirs: keelson.cniConfDirs },
        lastCNILoadStatus: (await cni.status()).message || 'OK',
      }),
    });
    after(() => cri.close());
  }
  return { runtime, cni, podCidrs };
}

/** The runtime that `containerRuntimeEndpoint` names, once it answers; what speaks gRPC is loaded only for it. */
export async function foreignRuntime(config: AgentConfig, log: Logger, clock: Clock) {
  const { containerRuntimeEndpoint: endpoint } = config;
  if (endpoint === undefined) return undefined;
  if (config.keelson.imagesDir !== undefined) {
    log.warn(
      'keelson.imagesDir is not looked at: with containerRuntimeEndpoint images are those of the other runtime',
    );
  }
  const { openForeignRuntime } = await import('../foreign_runtime.ts');
  return openForeignRuntime({ endpoint, config, clock, log: log.child({ room: 'runtime' }) });
}
