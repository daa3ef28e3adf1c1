/**
 * CSI: drivers that register through the plugin registry, and their volumes. Little of it is in memory before there is a
 * driver or a volume of one.
 */
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { abortable } from '../apiserver/credentials.ts';
import type { ApiserverClient, EventRecorder } from '../apiserver/types.ts';
import type { PluginHandler } from '../plugins/registration.ts';
import { makePluginRegistry } from '../plugins/registry.ts';
import type { CsiNodeAnnouncer } from '../volumes/csi/csi_node.ts';
import type { CsiDrivers } from '../volumes/csi/drivers.ts';
import type { VolumesInUse } from '../volumes/csi/in_use.ts';
import type { VolumeUsage } from '../volumes/csi/mount.ts';
import type { VolumeKind } from '../volumes/kinds/kind.ts';

export interface CsiOptions {
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  readonly nodeName: string;
  /** Absent: drivers register, but their volumes cannot be had. */
  readonly client: ApiserverClient | undefined;
  /** Resolves when the Node is at the apiserver. */
  readonly registered: Promise<void> | undefined;
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface Csi {
  readonly kind: VolumeKind;
  /** How full the volume in a pod's folder is, by its driver; undefined where that does not say, or not in time. */
  usage(folder: string): Promise<VolumeUsage | undefined>;
  close(): Promise<void>;
}

/** Waits between attempts to say which node this is. */
const announceMs = 10_000;
/** A scrape of the node's statistics waits for no driver that hangs. */
const usageMs = 5000;
const plugin = 'kubernetes.io~csi';

export function startCsi(options: CsiOptions): Csi {
  const { kubeletDir, nodeName, client, registered, events, clock, log } = options;
  const stop = new AbortController();
  let drivers: Promise<{ drivers: CsiDrivers; announcer: CsiNodeAnnouncer | undefined }> | undefined;
  let kind: Promise<VolumeKind> | undefined;
  let inUse: VolumesInUse | undefined;

  const loadDrivers = async () => {
    const [{ makeCsiDrivers }, { makeAnnouncer }] = await Promise.all([
      import('../volumes/csi/drivers.ts'),
      import('../volumes/csi/csi_node.ts'),
    ]);
    const announcer = client === undefined ? undefined : makeAnnouncer({ client, nodeName, clock });
    return { drivers: makeCsiDrivers(announcer), announcer };
  };
  const theDrivers = () => {
    drivers ??= loadDrivers();
    return drivers;
  };

  const loadKind = async (): Promise<VolumeKind> => {
    const [{ csiKind }, { makeCsiFacts }, { makeExpander }, { makeTokens }, { makeVolumesInUse }] =
      await Promise.all([
        import('../volumes/csi/kind.ts'),
        import('../volumes/csi/facts.ts'),
        import('../volumes/csi/expand.ts'),
        import('../volumes/tokens.ts'),
        import('../volumes/csi/in_use.ts'),
      ]);
    const tokens = makeTokens({ client, clock, log });
    const facts = makeCsiFacts({ client, nodeName, tokens, clock });
    inUse = client && makeVolumesInUse({ kubeletDir, client, nodeName, clock, log });
    return csiKind({
      kubeletDir,
      nodeName,
      drivers: (await theDrivers()).drivers,
      facts,
      ...(inUse === undefined ? {} : { inUse }),
      ...(client === undefined
        ? {}
        : { expander: makeExpander({ kubeletDir, client, facts, events, clock, log }) }),
      clock,
      log,
      warn: (pod, reason, message) =>
        events.event(
          { apiVersion: 'v1', kind: 'Pod', metadata: pod.metadata ?? {} },
          'Warning',
          reason,
          message,
        ),
    });
  };
  const theKind = () => {
    kind ??= loadKind();
    return kind;
  };

  /** A driver's sidecars and the scheduler look for the object, also before there is a driver. */
  const announce = async (): Promise<void> => {
    await registered;
    while (!stop.signal.aborted) {
      const { announcer } = await theDrivers();
      try {
        const node = await announcer?.create(stop.signal);
        // An earlier process said so: what is no more in use must not stay at the node.
        if (node?.status?.volumesInUse?.length) {
          await theKind();
          await inUse?.sync();
        }
        return;
      } catch (error) {
        if (stop.signal.aborted) return;
        log.warn({ err: error }, 'cannot make the CSINode object; trying again');
        await sleep(clock, announceMs, stop.signal).catch(() => {});
      }
    }
  };
  if (client !== undefined) {
    announce().catch((error: unknown) => {
      if (!stop.signal.aborted) log.debug({ err: error }, 'the CSINode object is not made');
    });
  }

  const handler: PluginHandler = {
    validate: async (one) => (await theDrivers()).drivers.handler.validate(one),
    register: async (one, signal) => {
      const { handler: own } = (await theDrivers()).drivers;
      // The Node is told of the driver.
      await abortable(registered ?? Promise.resolve(), signal, 'registering a CSI driver');
      await own.register(one, signal);
    },
    deregister: async (one) => (await theDrivers()).drivers.handler.deregister(one),
  };
  const registry = makePluginRegistry({ kubeletDir, handlers: { CSIPlugin: handler }, clock, log });
  return {
    kind: {
      plugin,
      has: (source) => !!source.csi,
      setUp: async (request) => (await theKind()).setUp(request),
      tearDown: async (remains) => (await theKind()).tearDown!(remains),
      forget: (podUid) => void kind?.then((own) => own.forget!(podUid)),
    },
    async usage(folder) {
      const { volumeUsage } = await import('../volumes/csi/mount.ts');
      const late = AbortSignal.any([stop.signal, AbortSignal.timeout(usageMs)]);
      return volumeUsage((await theDrivers()).drivers, folder, kubeletDir, late).catch((error: unknown) => {
        log.debug({ err: error, folder }, 'a CSI driver does not say how full a volume is');
        return undefined;
      });
    },
    async close() {
      stop.abort();
      inUse?.close();
      await registry.close();
      (await drivers)?.drivers.close();
    },
  };
}
