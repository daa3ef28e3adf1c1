/** The container runtime of somebody else (`containerRuntimeEndpoint`), opened for the agent. */

import type { ImageService } from '../runtime/api.ts';
import { type ForeignRuntimeService, makeCriClient } from '../runtime/cri/client.ts';
import { type Clock, sleep } from '../runtime/host/clock.ts';
import { isError } from '../runtime/host/errors.ts';
import type { Logger } from '../runtime/host/log.ts';
import type { AgentConfig } from './config/load.ts';
import { makeForeignCollector, type SlowCollector } from './images/foreign_collector.ts';

export interface ForeignRuntime {
  readonly runtime: ForeignRuntimeService;
  /** `containerd` */
  readonly name: string;
  readonly images: ImageService;
  readonly collector: SlowCollector;
  /** The runtime's own where it tells, else the configuration's. */
  readonly cgroupDriver: 'cgroupfs' | 'systemd';
  /** A folder in the file system of its images. */
  readonly imagesFolder: string;
  readonly podCidrs: (cidrs: string) => Promise<void>;
  close(): void;
}

export interface ForeignRuntimeOptions {
  readonly endpoint: string;
  readonly config: AgentConfig;
  readonly clock: Clock;
  readonly log: Logger;
}

/** How often a runtime that has not been started yet is looked for, in milliseconds. */
const againMs = 1000;

/** Waits, without an end, until the runtime answers: it may be started after the agent. Throws CONFIG_INVALID. */
export async function openForeignRuntime(options: ForeignRuntimeOptions): Promise<ForeignRuntime> {
  const { endpoint, config, clock, log } = options;
  const client = makeCriClient({
    endpoint,
    imageEndpoint: config.imageServiceEndpoint,
    timeoutMs: config.runtimeRequestTimeout,
    clock,
    log,
  });
  const { runtime, images } = client;
  try {
    let name = '';
    for (let told = false; name === ''; told = true) {
      try {
        const found = await runtime.version();
        log.info({ endpoint, ...found }, 'containers are run by another runtime');
        name = found.runtimeName || 'unknown';
      } catch (error) {
        if (!isError(error, 'UNAVAILABLE', 'DEADLINE_EXCEEDED')) throw error;
        if (!told) log.warn({ endpoint, err: error }, 'the container runtime does not answer yet: waiting');
        // A socket that somebody will listen on one day tells nobody.
        await sleep(clock, againMs);
      }
    }
    const [driver, disk] = await Promise.all([
      client.cgroupDriver(),
      // Where its images are is only for their garbage collection.
      images.imageFsInfo().catch(() => undefined),
    ]);
    for (const { type, status, message } of await runtime.status()) {
      if (!status) log.error({ condition: type }, message);
    }
    const { cgroupDriver = config.cgroupDriver } = { cgroupDriver: driver };
    if (cgroupDriver !== config.cgroupDriver) {
      log.info({ cgroupDriver }, 'the cgroup driver is that of the container runtime');
    }
    return {
      runtime,
      name,
      images,
      podCidrs: (cidrs) => client.updatePodCidrs(cidrs),
      collector: makeForeignCollector({ runtime, images, clock, log }),
      cgroupDriver,
      imagesFolder: disk?.mountpoint || config.keelson.kubeletDir,
      close: client.close,
    };
  } catch (error) {
    client.close();
    throw error;
  }
}
