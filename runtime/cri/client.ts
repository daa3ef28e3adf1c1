/**
 * The container runtime of somebody else (containerd, CRI-O, another keelson) as the interfaces of runtime/api.ts: the CRI
 * v1 spoken over its unix socket.
 */
import type { ImageService, RuntimeDetails, RuntimeService, RuntimeStats } from '../api.ts';
import type { Clock } from '../host/clock.ts';
import { isError, KeelsonError } from '../host/errors.ts';
import type { Logger } from '../host/log.ts';
import { openChannel } from './client/channel.ts';
import { makeEvents } from './client/events.ts';
import { makeRemoteImages } from './client/images.ts';
import { makeRemoteRuntime } from './client/runtime.ts';

export interface CriClientOptions {
  /** `unix:///run/containerd/containerd.sock`, or the path alone. */
  readonly endpoint: string;
  /** Where images have a socket of their own. */
  readonly imageEndpoint?: string;
  /** Milliseconds that a call may take besides what it is told to wait. Default: kubelet's two minutes. */
  readonly timeoutMs?: number;
  readonly clock: Clock;
  readonly log: Logger;
}

/** `metricDescriptors` and `listPodSandboxMetrics` throw UNIMPLEMENTED for runtimes that are older than the calls. */
export type ForeignRuntimeService = RuntimeService &
  RuntimeStats &
  Pick<RuntimeDetails, 'containerInfo' | 'sandboxInfo'>;

export interface CriClient {
  readonly runtime: ForeignRuntimeService;
  readonly images: ImageService;
  /** Tells the runtime the node's pod CIDRs, a list with commas. */
  updatePodCidrs(podCidr: string): Promise<void>;
  /** The driver that the runtime was set up with; undefined where it does not say. */
  cgroupDriver(): Promise<'cgroupfs' | 'systemd' | undefined>;
  /** Ends events and calls; containers are left as they are. */
  close(): void;
}

/**
 * Connects with the first call. While the runtime is away calls throw UNAVAILABLE at once; when it is back they reach it
 * within a second. Throws CONFIG_INVALID for an endpoint that is no unix socket.
 */
export function makeCriClient(options: CriClientOptions): CriClient {
  const { endpoint, imageEndpoint, timeoutMs = 120_000, clock, log } = options;
  const channel = openChannel(socketOf(endpoint));
  const imageChannel = imageEndpoint === undefined ? channel : openChannel(socketOf(imageEndpoint));
  const runtime = makeRemoteRuntime(channel, timeoutMs);
  const events = makeEvents({
    runtime,
    stream: (heard, signal) => channel.stream('GetContainerEvents', {}, heard, signal),
    clock,
    log,
  });
  return {
    runtime: { ...runtime, containerEvents: events.listen },
    images: makeRemoteImages(imageChannel, timeoutMs),
    async updatePodCidrs(podCidr) {
      const runtimeConfig = { networkConfig: { podCidr } };
      await channel.call('UpdateRuntimeConfig', { runtimeConfig }, { deadlineMs: timeoutMs });
    },
    async cgroupDriver() {
      try {
        const { linux } = await channel.call('RuntimeConfig', {}, { deadlineMs: timeoutMs });
        if (linux === undefined) return undefined;
        return linux.cgroupDriver === 'SYSTEMD' ? 'systemd' : 'cgroupfs';
      } catch (error) {
        // Runtimes older than the call: containerd before 2.0.
        if (isError(error, 'UNIMPLEMENTED')) return undefined;
        throw error;
      }
    },
    close() {
      events.close();
      for (const one of new Set([channel, imageChannel])) one.close();
    },
  };
}

function socketOf(endpoint: string): string {
  const [, path] = /^(?:unix:(?:\/\/)?)?(\/[^/].*)$/.exec(endpoint) ?? [];
  if (path !== undefined) return path;
  throw new KeelsonError('CONFIG_INVALID', `the container runtime endpoint ${endpoint} is no unix socket`, {
    hint: 'write it as unix:///run/containerd/containerd.sock',
  });
}
