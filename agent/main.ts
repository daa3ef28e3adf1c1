/** Puts the node together: the only place that knows every room. Data flows from the sources to the workers. */
import { flushCompileCache } from 'node:module';
import { join, resolve } from 'node:path';
import type { ImageFolder } from '../images/archive/watch.ts';
import { makeImages } from '../images/service.ts';
import type { RuntimeService, RuntimeStats } from '../runtime/api.ts';
import { detectCgroups } from '../runtime/host/cgroups.ts';
import { type Clock, systemClock } from '../runtime/host/clock.ts';
import { KeelsonError } from '../runtime/host/errors.ts';
import { ensureFolder } from '../runtime/host/files.ts';
import { type Logger, makeLogger } from '../runtime/host/log.ts';
import { giveMemoryBack } from '../runtime/host/memory.ts';
import { systemdSlices } from '../runtime/host/slices.ts';
import type { EmbeddedRuntime } from '../runtime/runtime.ts';
import type { StreamingServer } from '../runtime/streaming/types.ts';
import { startHealthz } from './api/healthz.ts';
import { containerForLogs } from './api/log-container.ts';
import { startNodeApi } from './api/server.ts';
import { makeClient } from './apiserver/client.ts';
import { makeEventRecorder } from './apiserver/events.ts';
import { loadKubeconfig } from './apiserver/kubeconfig.ts';
import { makeObjectCache } from './apiserver/objects.ts';
import { parseQuantity } from './apiserver/quantity.ts';
import { type Reflector, reflect } from './apiserver/reflector.ts';
import type { Pod } from './apiserver/types.ts';
import { type AgentConfig, loadConfig } from './config/load.ts';
import { printConfig } from './config/print.ts';
import { accessConfig, podsConfig } from './config/rooms.ts';
import { imageVerbs } from './control/images.ts';
import { runtimeVerbs } from './control/runtime.ts';
import { startControl } from './control/server.ts';
import { type ImageAccess, makeImageAccess } from './images/access.ts';
import { type ImageGc, startImageGc } from './images/gc.ts';
import { startLogRotation } from './logs/rotate.ts';
import { once, whenCalm } from './main/calm.ts';
import { startCsi } from './main/csi.ts';
import { imagesOptions, openState } from './main/images.ts';
import { kernelSettings } from './main/kernel.ts';
import { foreignRuntime, openRuntime } from './main/runtime.ts';
import { lazyStats } from './main/stats.ts';
import { watchManifests } from './manifests/watch.ts';
import { fetchMetrics } from './metrics/fetches.ts';
import { processMetrics } from './metrics/process.ts';
import { countPulls } from './metrics/pulls.ts';
import { makeFactsReader } from './node/facts.ts';
import { startNode } from './node/node.ts';
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

/** No pod: nobody's secrets and service account. */
const nobody = { namespace: '', name: '', uid: '', serviceAccount: '', pullSecrets: [] } as const;

/** After a start or a change of containers, when memory that only they needed is given back. */
const calmMs = 10_000;

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
    /** What the node itself has for an image: for pulls of the command line, and for mirrors. */
    const nodeAuths = async (image: string, signal: AbortSignal) => {
      const found = await access?.credentials(image, nobody, signal);
      return found?.credentials.map(({ auth }) => auth) ?? [];
    };
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
    let opening: Promise<StreamingServer> | undefined;
    const loadStreaming = async (): Promise<StreamingServer> => {
      const { makeStreaming } = await import('../runtime/streaming/server.ts');
      const idleMs = config.streamingConnectionIdleTimeout;
      return makeStreaming({
        runtime: served ?? foreign!.runtime,
        clock,
        log: log.child({ room: 'streaming' }),
        idleMs,
      });
    };
    const streaming = () => {
      opening ??= loadStreaming();
      return opening;
    };
    // From here on: images can be listed and pulled while the rest starts.
    const control = await startControl({
      runDir: keelson.runDir,
      handlers: {
        ...imageVerbs({ images, authsFor: nodeAuths }),
        ...runtimeVerbs({ runtime: () => served ?? foreign?.runtime, streaming }),
      },
      log: log.child({ room: 'control' }),
      clock,
    });
    after(() => control.close());
    const own =
      db && ownPulls && (await openRuntime(config, { db, images: ownPulls.images, log, clock, after }));
    served = own?.runtime;
    after(async () => (await opening)?.close());
    if (runtimeOnly) {
      log.info({ version }, 'the runtime is up');
      return closeAll;
    }
    const runtime: RuntimeService & RuntimeStats = own?.runtime ?? foreign!.runtime;

    const client =
      kubeconfigFile === undefined
        ? undefined
        : makeClient({
            access: await loadKubeconfig(kubeconfigFile),
            clock,
            log: log.child({ room: 'apiserver' }),
            userAgent: `keelson/${version} (linux/${process.arch}) kubelet/${kubernetesVersion}`,
            clientQps: config.kubeAPIQPS,
            clientBurst: config.kubeAPIBurst,
          });
    if (client !== undefined) after(() => client.close());
    const events = makeEventRecorder({
      client,
      host: nodeName,
      clock,
      log: log.child({ room: 'events' }),
      qps: config.eventRecordQPS,
      burst: config.eventBurst,
    });
    after(() => events.close());
    const facts = makeFactsReader({
      kubeletDir: keelson.kubeletDir,
      stateDir: foreign?.imagesFolder ?? keelson.stateDir,
      nodeIP: keelson.nodeIP,
    });
    let reflector: Reflector | undefined;
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
            handlers: foreign?.handlers ?? Object.keys(keelson.runtimes),
            onApiserverBack: () => reflector?.retryNow(),
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
      allocatable,
      nodeLabels: () => node?.current()?.metadata?.labels ?? {},
      warn: (pod, reason, message) =>
        events.event({ apiVersion: 'v1', kind: 'Pod', metadata: pod.metadata }, 'Warning', reason, message),
    });
    const cgroups = detectCgroups();
    const cgroupDriver = foreign?.cgroupDriver ?? config.cgroupDriver;
    const groups = cgroupDriver === 'systemd' && cgroups.version === 2 ? systemdSlices(cgroups) : cgroups;
    const podsSettings = {
      ...podsConfig({ ...config, cgroupDriver }),
      kernel: await kernelSettings(config, firstFacts, cgroups.version),
    };
    const qosGroups = makeQosGroups({
      cgroups: groups,
      settings: podsSettings.cgroup,
      limits: kubepodsLimits(config, firstFacts),
      reserved: reservedGroups(config),
      log: log.child({ room: 'pods' }),
    });
    const probes = makeProbeRoom(clock);
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
      sources: [
        ...(client === undefined ? [] : (['api'] as const)),
        ...(config.staticPodPath === undefined ? [] : (['file'] as const)),
        ...(config.staticPodURL === undefined ? [] : (['url'] as const)),
      ],
      memoryCapacity: firstFacts.memoryBytes,
      random: Math.random,
      nodeName,
      hostIps: () => node?.addresses() ?? firstFacts.addresses,
      allocatable,
      nodeLabels: () => node?.current()?.metadata?.labels ?? {},
      nodeTaints: () => node?.current()?.spec?.taints,
      memoryUsage: async (id, signal) => (await own?.runtime.containerStats(id, signal))?.memory?.usage,
      onRequests: (requests) => qosGroups.update(requests),
      log: log.child({ room: 'pods' }),
      clock,
    });
    after(() => pods.close());
    imageGc = startImageGc({
      images: ownPulls?.images ?? foreign!.collector,
      pods: () => pods.pods(),
      disk: async () => (await facts.read()).imagefs,
      thresholds: {
        highPercent: config.imageGCHighThresholdPercent,
        lowPercent: config.imageGCLowThresholdPercent,
        minimumAgeMs: config.imageMinimumGCAge,
        maximumAgeMs: config.imageMaximumGCAge,
      },
      nodeName,
      events,
      clock,
      log: log.child({ room: 'images' }),
    });
    after(() => imageGc?.close());
    const rotation = startLogRotation({
      runtime,
      logs: () => pods.runningLogs(),
      maxBytes: parseQuantity(config.containerLogMaxSize),
      maxFiles: config.containerLogMaxFiles,
      workers: config.containerLogMaxWorkers,
      everyMs: config.containerLogMonitorInterval,
      clock,
      log: log.child({ room: 'logs' }),
    });
    after(() => rotation.close());
    if (config.staticPodPath !== undefined) {
      const manifests = watchManifests({
        folder: config.staticPodPath,
        nodeName,
        sink: pods,
        log: log.child({ room: 'manifests' }),
        clock,
      });
      after(() => manifests.close());
    }
    if (config.staticPodURL !== undefined) {
      const { watchManifestUrl } = await import('./manifests/url.ts');
      const manifests = watchManifestUrl({
        url: config.staticPodURL,
        headers: config.staticPodURLHeader,
        everyMs: config.httpCheckFrequency,
        nodeName,
        sink: pods,
        log: log.child({ room: 'manifests' }),
        clock,
      });
      after(() => manifests.close());
    }
    if (client !== undefined) {
      const watch = reflect<Pod>({
        client,
        path: '/api/v1/pods',
        query: { fieldSelector: `spec.nodeName=${nodeName}` },
        onReplace: (list) => pods.replaceAll('api', list),
        onUpsert: (pod) => pods.upsert('api', pod),
        onDelete: ({ metadata }) => pods.remove('api', metadata!.uid!),
        clock,
        log: log.child({ room: 'apiserver' }),
      });
      reflector = watch;
      after(() => watch.close());
    }

    const healthy = () => ({ ok: true, message: 'ok' });
    if (config.enableServer) {
      const api = await startNodeApi({
        address: config.address,
        port: config.port,
        tls: {
          certFile: config.tlsCertFile,
          keyFile: config.tlsPrivateKeyFile,
          selfSignedFolder: join(keelson.kubeletDir, 'pki'),
          names: [nodeName],
          ips: [...new Set([...firstFacts.addresses, '127.0.0.1', '::1'])],
        },
        clientCaFile: config.authentication.x509.clientCAFile,
        authentication: {
          anonymous: config.authentication.anonymous.enabled,
          webhook: config.authentication.webhook.enabled,
        },
        authorization: { mode: config.authorization.mode as 'AlwaysAllow' | 'Webhook' },
        client,
        nodeName,
        log: log.child({ room: 'api' }),
        clock,
        pods: () => pods.pods(),
        container(namespace, name, container, previous) {
          const pod = pods
            .pods()
            .findLast(({ metadata }) => metadata?.name === name && metadata.namespace === namespace);
          containerForLogs(pod, name, container, previous);
          const found = pods.containerLog(namespace, name, container, previous);
          if (found !== undefined) return found;
          throw new KeelsonError('NOT_FOUND', `the log of container "${container}" in pod "${name}" is gone`);
        },
        healthy,
        streams: { runtime, handlers: async () => (await streaming()).handlers },
        stats: lazyStats({
          nodeName,
          runtime,
          facts,
          pods: () => pods.pods(),
          kubeletDir: keelson.kubeletDir,
          podLogsDir: config.podLogsDir,
          csiUsage: csi.usage,
          clock,
          log: log.child({ room: 'api' }),
        }),
        configuration: () => printConfig(config),
        systemLogs: config.enableSystemLogHandler ? '/var/log' : undefined,
        debugging: config.enableDebuggingHandlers,
        probeMetrics: [probes.counts.source],
        metrics: [pulls.source, ...(imageRoom ? [fetchMetrics(imageRoom.fetchMetrics)] : []), processMetrics],
      });
      after(() => api.close());
    }
    if (config.healthzPort !== 0) {
      const healthz = await startHealthz({
        address: config.healthzBindAddress,
        port: config.healthzPort,
        healthy,
      });
      after(() => healthz.close());
    }
    const archives = once(async () => {
      // Archives go into our own images only.
      if (db === undefined || ownPulls === undefined) return;
      const { watchImageFolder } = await import('../images/archive/watch.ts');
      watched = watchImageFolder({
        folder: keelson.imagesDir ?? join(keelson.stateDir, 'images'),
        db,
        images: ownPulls.images,
        log: log.child({ room: 'images' }),
        clock,
        onEvent: calm.stir,
      });
      after(() => watched?.close());
    });
    const calm = whenCalm(clock, calmMs, async () => {
      await archives().catch((error: unknown) =>
        log.error({ err: error }, 'image archives are not looked for'),
      );
      flushCompileCache(); // A killed process would not leave it to the next one.
      // Last, for what comes before needs memory only once.
      await giveMemoryBack().catch((error: unknown) => log.warn({ err: error }, 'cannot give memory back'));
    });
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
