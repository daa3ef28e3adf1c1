/** Puts the node together: the only place that knows every room. Data flows from the sources to the workers. */
import { resolve } from 'node:path';
import type { ImageFolder } from '../images/archive/watch.ts';
import { makeImages } from '../images/service.ts';
import type { RuntimeService, RuntimeStats } from '../runtime/api.ts';
import { detectCgroups } from '../runtime/host/cgroups.ts';
import { type Clock, systemClock } from '../runtime/host/clock.ts';
import { KeelsonError } from '../runtime/host/errors.ts';
import { ensureFolder } from '../runtime/host/files.ts';
import { type Logger, makeLogger } from '../runtime/host/log.ts';
import { systemdSlices } from '../runtime/host/slices.ts';
import type { EmbeddedRuntime } from '../runtime/runtime.ts';
import { makeObjectCache } from './apiserver/objects.ts';
import type { Reflector } from './apiserver/reflector.ts';
import { type AgentConfig, loadConfig } from './config/load.ts';
import { accessConfig } from './config/rooms.ts';
import { imageVerbs } from './control/images.ts';
import { runtimeVerbs } from './control/runtime.ts';
import { startControl } from './control/server.ts';
import { type ImageAccess, makeImageAccess } from './images/access.ts';
import type { ImageGc } from './images/gc.ts';
import { openApi } from './main/api.ts';
import { openApiserver } from './main/apiserver.ts';
import { once, whenIdle } from './main/calm.ts';
import { startCsi } from './main/csi.ts';
import { authsOfNode, imagesOptions, openState } from './main/images.ts';
import { podSettings } from './main/pods/settings.ts';
import { foreignRuntime, openRuntime } from './main/runtime.ts';
import { openSources, sourceKinds } from './main/sources.ts';
import { lazyStreaming } from './main/streaming.ts';
import { openImageGc, rotateLogs, watchArchives } from './main/upkeep.ts';
import { fetchMetrics } from './metrics/fetches.ts';
import { processMetrics } from './metrics/process.ts';
import { countPulls } from './metrics/pulls.ts';
import { declaredFeatures } from './node/declared_features.ts';
import { makeFactsReader } from './node/facts.ts';
import { startNode } from './node/node.ts';
import { watchStorage } from './pods/eviction/storage_watch.ts';
import { makePodManager } from './pods/manager.ts';
import { makeProbeRoom } from './pods/prober.ts';
import { kubepodsLimits, makeQosGroups, reservedGroups } from './pods/resources/qos_groups.ts';
import { kubernetesVersion, version } from './version.ts';
import { makeVolumes } from './volumes/manager.ts';

export interface AgentOptions {
  readonly configFile: string | undefined;
  /** None: only static pods run. */
  readonly kubeconfigFile: string | undefined;
  /** Over the configuration's. */
  readonly nodeName: string | undefined;
  readonly nodeIp: string | undefined;
  readonly containerRuntimeEndpoint?: string;
  readonly imageCredentialProviderConfig: string | undefined;
  readonly imageCredentialProviderBinDir: string | undefined;
  /** Only the runtime and its CRI socket, for the kubelet of others: no pods of its own, no apiserver. */
  readonly runtimeOnly?: boolean;
}

/** Runs the node until SIGTERM or SIGINT; containers go on without it. Resolves when it has started. */
export async function startAgent(options: AgentOptions): Promise<void> {
  const config = await loadConfig(options.configFile, {
    containerRuntimeEndpoint: options.containerRuntimeEndpoint,
    keelson: {
      hostnameOverride: options.nodeName,
      nodeIP: options.nodeIp,
      imageCredentialProviderConfig: absolutePath(options.imageCredentialProviderConfig),
      imageCredentialProviderBinDir: absolutePath(options.imageCredentialProviderBinDir),
    },
  });
  const clock = systemClock;
  const log = makeLogger(config.logLevel);
  for (const warning of config.warnings) log.warn(warning);
  // A failure that nobody waited for is a bug, and no reason to leave the node without its agent.
  process.on('unhandledRejection', (error) => log.error({ err: error }, 'a failure that nobody handled'));
  const close = await assemble(config, options, log, clock);
  let ending = false;
  const end = (signal: string) => {
    if (ending) return;
    ending = true;
    log.info({ signal }, 'stopping; containers go on');
    // Whatever hangs must not keep the process: its state is on disk at every moment.
    clock.after(5000, () => process.exit(1));
    void close().then(() => process.exit(0));
  };
  for (const signal of ['SIGTERM', 'SIGINT'] as const) process.on(signal, () => end(signal));
}

/** Opens the rooms from the floor up; returns what closes them in the other order and never rejects. */
async function assemble(
  config: AgentConfig,
  { kubeconfigFile, runtimeOnly = false }: AgentOptions,
  log: Logger,
  clock: Clock,
): Promise<() => Promise<void>> {
  const { keelson, nodeName } = config;
  // Under a stricter one other users could read neither the pods' logs nor their resolv.conf.
  process.umask(0o022);
  const opened: (() => Promise<void> | void)[] = [];
  const ending = new AbortController();
  /** `after` closes what was opened last first. */
  const after = (close: () => Promise<void> | void) => opened.push(close);
  const closeAll = async () => {
    ending.abort(new KeelsonError('ABORTED', 'the agent is stopping'));
    for (const close of opened.reverse()) {
      try {
        await close();
      } catch (error) {
        // The others, the database above all, are to be closed all the same.
        log.error({ err: error }, 'a part of the agent did not stop cleanly');
      }
    }
  };
  try {
    const folders = [keelson.runDir, keelson.kubeletDir, config.podLogsDir, keelson.containerLogsDir];
    await Promise.all(folders.map((folder) => ensureFolder(folder)));
    const foreign = runtimeOnly ? undefined : await foreignRuntime(config, log, clock);
    if (foreign !== undefined) after(() => foreign.close());
    const db = foreign === undefined ? await openState(config, log, clock) : undefined;
    after(() => db?.close());
    let access: ImageAccess | undefined;
    let imageGc: ImageGc | undefined;
    let watched: ImageFolder | undefined;
    const nodeAuths = authsOfNode(() => access);
    const imageRoom =
      db &&
      (await makeImages({
        ...imagesOptions(config, db, log, clock),
        onStorageFull: () => imageGc?.spaceRanOut(),
        onImageLost: () => watched?.look(),
        mirrorAuths: (host) => nodeAuths(`${host}/any`, ending.signal),
      }));
    after(() => imageRoom?.close());
    const ownPulls = imageRoom && countPulls(imageRoom, clock);
    const pulls = ownPulls ?? countPulls(foreign!.images, clock);
    const { images } = pulls;
    let served: EmbeddedRuntime | undefined;
    const streaming = lazyStreaming(() => served ?? foreign!.runtime, config, clock, log);
    // From here on: images can be listed and pulled while the rest starts.
    const control = await startControl({
      runDir: keelson.runDir,
      handlers: {
        ...imageVerbs({ images, authsFor: nodeAuths }),
        ...runtimeVerbs({ runtime: () => served ?? foreign?.runtime, streaming: streaming.open }),
      },
      log: log.child({ room: 'control' }),
      clock,
    });
    after(() => control.close());
    const own =
      db && ownPulls && (await openRuntime(config, { db, images: ownPulls.images, log, clock, after }));
    served = own?.runtime;
    after(() => streaming.close());
    if (runtimeOnly) {
      log.info({ version }, 'the runtime is up');
      return closeAll;
    }
    const runtime: RuntimeService & RuntimeStats = own?.runtime ?? foreign!.runtime;

    const { client, events } = await openApiserver(config, { kubeconfigFile, clock, log, after });
    const facts = makeFactsReader({
      kubeletDir: keelson.kubeletDir,
      stateDir: foreign?.imagesFolder ?? keelson.stateDir,
      nodeIP: keelson.nodeIP,
    });
    if (client === undefined && config.podCIDR)
      await own
        ?.podCidrs(config.podCIDR)
        .catch((error: unknown) => log.error({ err: error }, 'podCIDR is not used'));
    let reflector: Reflector | undefined;
    const declared = declaredFeatures(config);
    const node =
      client === undefined
        ? undefined
        : startNode({
            client,
            config,
            facts,
            runtime,
            images,
            events,
            clock,
            log: log.child({ room: 'node' }),
            kubeletVersion: `${kubernetesVersion}-keelson.${version}`,
            declaredFeatures: declared,
            onApiserverBack: () => reflector?.retryNow(),
            onPodCidrs: own?.podCidrs ?? foreign?.podCidrs,
          });
    if (node !== undefined) {
      after(() => node.close());
      if (own !== undefined) after(own.cni.onChange(() => node.poke()));
    }
    const objects = makeObjectCache({
      client,
      clock,
      log: log.child({ room: 'apiserver' }),
      ttlMs: node === undefined ? undefined : () => node.objectTtlMs(),
    });
    after(() => objects.close());

    const imageAccess = await makeImageAccess({
      images,
      objects,
      client,
      clock,
      log: log.child({ room: 'pods' }),
      ...accessConfig(config),
    });
    access = imageAccess;
    after(() => imageAccess.close());

    const firstFacts = await facts.read();
    const allocatable = () => node?.current()?.status?.allocatable ?? {};
    const nodeLabels = () => node?.current()?.metadata?.labels ?? {};
    const csi = startCsi({
      kubeletDir: keelson.kubeletDir,
      nodeName,
      client,
      registered: node?.registered,
      events,
      clock,
      log: log.child({ room: 'volumes' }),
    });
    after(() => csi.close());
    const volumes = makeVolumes({
      kinds: [csi.kind],
      kubeletDir: keelson.kubeletDir,
      client,
      objects,
      nodeName,
      log: log.child({ room: 'volumes' }),
      clock,
      ending: ending.signal,
      allocatable,
      nodeLabels,
      warn: (pod, reason, message) =>
        events.event({ apiVersion: 'v1', kind: 'Pod', metadata: pod.metadata }, 'Warning', reason, message),
    });
    const cgroups = detectCgroups();
    const cgroupDriver = foreign?.cgroupDriver ?? config.cgroupDriver;
    const groups = cgroupDriver === 'systemd' && cgroups.version === 2 ? systemdSlices(cgroups) : cgroups;
    const { settings: podsSettings, kernelHas } = await podSettings(
      { ...config, cgroupDriver },
      firstFacts,
      cgroups.version,
    );
    const firstFeatures = await runtime.features();
    const tellNode = (type: 'Normal' | 'Warning', reason: string, message: string) => {
      const metadata = { name: nodeName, uid: node?.current()?.metadata?.uid };
      events.event({ apiVersion: 'v1', kind: 'Node', metadata }, type, reason, message);
    };
    const qosGroups = makeQosGroups({
      cgroups: groups,
      settings: podsSettings.cgroup,
      limits: kubepodsLimits(config, firstFacts),
      reserved: reservedGroups(config),
      tell: tellNode,
      log: log.child({ room: 'pods' }),
    });
    const probes = makeProbeRoom(clock);
    const storageLimits = config.localStorageCapacityIsolation
      ? watchStorage({
          measure: async (limited, signal) => {
            const { measureStorage } = await import('./pods/eviction/storage_use.ts');
            const { kubeletDir } = keelson;
            return measureStorage(limited, { runtime, kubeletDir, podLogsDir: config.podLogsDir }, signal);
          },
          imagesApart: async () => {
            const { areApart } = await import('./pods/eviction/storage_use.ts');
            return areApart(keelson.kubeletDir, foreign?.imagesFolder ?? keelson.stateDir);
          },
          evict: ({ metadata }, eviction) => pods.evict(metadata?.uid ?? '', eviction),
          clock,
          log: log.child({ room: 'pods' }),
        })
      : undefined;
    after(() => storageLimits?.close());
    const pods = makePodManager({
      runtime,
      probes,
      images,
      imageAccess,
      volumes,
      cgroups: groups,
      client,
      objects,
      events,
      config: { ...podsSettings, runtimeName: foreign?.name },
      sources: sourceKinds(config, client),
      memoryCapacity: firstFacts.memoryBytes,
      random: Math.random,
      nodeName,
      hostIps: () => node?.addresses() ?? firstFacts.addresses,
      allocatable,
      nodeLabels,
      nodeTaints: () => node?.current()?.spec?.taints,
      hostSecurity: () => ({
        ...kernelHas,
        ...(node?.runtimeFeatures() ?? firstFeatures),
        declaredFeatures: declared,
      }),
      memoryUsage: async (id, signal) => (await own?.runtime.containerStats(id, signal))?.memory?.usage,
      onRequests: (requests) => {
        qosGroups.update(requests);
        storageLimits?.update(requests);
      },
      log: log.child({ room: 'pods' }),
      clock,
    });
    after(() => pods.close());
    imageGc = openImageGc(config, {
      images: ownPulls?.images ?? foreign!.collector,
      pods: () => pods.pods(),
      facts,
      events,
      clock,
      log,
    });
    after(() => imageGc?.close());
    after(rotateLogs(config, { runtime, logs: () => pods.runningLogs(), clock, log }));
    reflector = await openSources(config, { client, sink: pods, clock, log, after });
    await openApi(config, {
      client,
      ips: firstFacts.addresses,
      pods,
      streaming: streaming.open,
      runtime,
      facts,
      csiUsage: csi.usage,
      probeMetrics: [probes.counts.source],
      metrics: [
        pulls.source,
        events.source,
        ...(imageRoom ? [fetchMetrics(imageRoom.fetchMetrics)] : []),
        processMetrics,
      ],
      clock,
      log,
      after,
    });
    const { startNodeWarnings } = await import('./node/warnings/warn.ts');
    after(
      startNodeWarnings({
        cgroupVersion: cgroups.version,
        resolvConf: podsSettings.resolvConf,
        clusterDomain: podsSettings.clusterDomain,
        warn: (reason, message) => tellNode('Warning', reason, message),
        log: log.child({ room: 'node' }),
      }),
    );
    const archives = once(async () => {
      // Archives go into our own images only.
      if (db === undefined || ownPulls === undefined) return;
      watched = await watchArchives(config, { db, images: ownPulls.images, onEvent: calm.stir, clock, log });
      after(() => watched?.close());
    });
    const calm = whenIdle(archives, clock, log);
    after(runtime.containerEvents(calm.stir));
    if (imageRoom !== undefined) after(imageRoom.events(calm.stir));
    after(calm.close);
    log.info({ node: nodeName, version, standalone: client === undefined }, 'keelson is up');
    return closeAll;
  } catch (error) {
    await closeAll();
    throw error;
  }
}

/** A path of the command line, which may be relative. */
function absolutePath(path: string | undefined): string | undefined {
  return path && resolve(path);
}
