/** The Node: registered, its status written when it changes, its lease kept. */
import type { ImageService, RuntimeFeatures, RuntimeService } from '../../runtime/api.ts';
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { backoffDelay } from '../apiserver/backoff.ts';
import { apiStatus } from '../apiserver/client.ts';
import { type Reflector, reflect } from '../apiserver/reflector.ts';
import type { ApiserverClient, EventRecorder, KubeObject, Node } from '../apiserver/types.ts';
import type { FactsReader, NodeFacts } from './facts.ts';
import { keepLease, type LeaseKeeper } from './lease.ts';
import { assessPressure, type PressureSeen } from './pressure.ts';
import { ensureNode, nodeObject } from './registration.ts';
import { makeRuntimeReporter } from './report.ts';
import { conditionEvents, nodeStatus, statusChanged, statusPatch } from './status.ts';
import type { NodeConfig, NodeStatusNow } from './types.ts';

export interface NodeOptions {
  readonly client: ApiserverClient & { resetConnections?(): void };
  readonly config: NodeConfig;
  readonly facts: FactsReader;
  readonly runtime: Pick<RuntimeService, 'status' | 'version' | 'handlers' | 'features'>;
  readonly images: Pick<ImageService, 'listImages'>;
  readonly events: EventRecorder;
  readonly clock: Clock;
  readonly log: Logger;
  /** `v1.37.0-keelson.0.1.0`. */
  readonly kubeletVersion: string;
  /** `status.declaredFeatures`, sorted. */
  readonly declaredFeatures?: readonly string[];
  /** Why the node takes no pods although its runtime would; call `poke` when it changes. */
  readonly notReady?: () => string | undefined;
  /** Called when the apiserver answers again after it did not: watches need not wait any longer. */
  readonly onApiserverBack?: () => void;
  /** Called with the node's pod CIDRs, a list with commas, when it gets them or they change; tried again after failures. */
  readonly onPodCidrs?: (cidrs: string) => Promise<void>;
  /** In [0, 1). Default Math.random. */
  readonly random?: () => number;
}

export interface NodeHandle {
  /** Resolves when the Node is at the apiserver for the first time. Rejects with ABORTED when closed before. */
  readonly registered: Promise<void>;
  /** Look again now: something that the status tells of has changed. */
  poke(): void;
  /** The Node as last seen at the apiserver. */
  current(): Node | undefined;
  /** InternalIPs as last found, primary first. */
  addresses(): readonly string[];
  /** What the runtime can do, as it told last. */
  runtimeFeatures(): RuntimeFeatures | undefined;
  /** Time to live of cached objects, from the node's annotation. */
  objectTtlMs(): number;
  close(): Promise<void>;
}

/** kubelet's for registration: 200 ms, doubled up to 7 s. */
const retry = { baseMs: 100, maxMs: 7000 };
/** While the node is starting, it looks more often, so that it is Ready as soon as it can be. */
const startingMs = 60_000;
const startingIntervalMs = 1000;
const ttlAnnotation = 'node.alpha.kubernetes.io/ttl';
const defaultTtlMs = 60_000;

export function startNode(options: NodeOptions): NodeHandle {
  const { client, config, clock, log, events, random = Math.random } = options;
  const { nodeName } = config;
  const path = `/api/v1/nodes/${nodeName}`;
  const about = () => ({
    apiVersion: 'v1',
    kind: 'Node',
    metadata: { name: nodeName, uid: observed?.metadata?.uid },
  });
  const report = makeRuntimeReporter({ runtime: options.runtime, images: options.images, clock });
  const controller = new AbortController();
  const { signal } = controller;
  const registered = Promise.withResolvers<void>();
  registered.promise.catch(() => {}); // Not everybody waits for it.
  const began = clock.monotonic();
  /** The newest Node that we know of; undefined: to be registered. */
  let observed: Node | undefined;
  let facts: NodeFacts | undefined;
  let runtimeFeatures: RuntimeFeatures | undefined;
  let seen: PressureSeen = {};
  let reportedAt = Number.NEGATIVE_INFINITY;
  let reflector: Reflector | undefined;
  let lease: LeaseKeeper | undefined;
  let poked = false;
  let toldCidrs: string | undefined;
  let wake = () => {};

  function poke(): void {
    poked = true;
    wake();
  }

  function observe(node: Node): void {
    if (observed !== undefined && isOlder(node, observed)) return;
    observed = node;
    tellPodCidrs();
  }

  function tellPodCidrs(): void {
    const { podCIDRs = [] } = observed?.spec ?? {};
    const cidrs = podCIDRs.join(',');
    if (cidrs === '' || cidrs === toldCidrs || options.onPodCidrs === undefined) return;
    toldCidrs = cidrs;
    options.onPodCidrs(cidrs).catch((error: unknown) => {
      toldCidrs = undefined; // With the next look at the node.
      log.warn({ err: error, podCidrs: cidrs }, 'the pod CIDRs could not be given to the runtime');
    });
  }

  /** Somebody changed the Node: a controller that thinks that it is dead is told otherwise at once. */
  function onUpsert(node: Node): void {
    const ready = readyOf(observed);
    observe(node);
    if (readyOf(observed) !== ready) poke();
  }

  function onDelete(object: KubeObject): void {
    if (observed === undefined || object.metadata?.uid !== observed.metadata?.uid) return;
    log.warn({ nodeName }, 'somebody deleted this Node: it is registered again');
    observed = undefined;
    poke();
  }

  function follow(): void {
    reflector ??= reflect<Node>({
      client,
      path: '/api/v1/nodes',
      query: { fieldSelector: `metadata.name=${nodeName}` },
      onReplace: (nodes) => {
        if (nodes[0] !== undefined) onUpsert(nodes[0]);
        else if (observed !== undefined) onDelete(observed);
      },
      onUpsert,
      onDelete,
      clock,
      log,
      random,
    });
    lease ??= keepLease({
      client,
      nodeName,
      nodeUid: () => observed?.metadata?.uid,
      durationSeconds: config.nodeLeaseDurationSeconds,
      clock,
      log,
      random,
      onRepeatedTimeout: () => client.resetConnections?.(),
      onRecovered: () => {
        reflector?.retryNow();
        options.onApiserverBack?.();
        poke();
      },
    });
  }

  function tell(before: NodeStatusNow | undefined, after: NodeStatusNow): void {
    for (const { type, reason, message } of conditionEvents(nodeName, before, after)) {
      events.event(about(), type, reason, message);
    }
  }

  /** Looks, and writes what changed. Returns whether the node is Ready. Throws what the client throws. */
  async function sync(): Promise<boolean> {
    const [found, runtime] = await Promise.all([options.facts.read(), report()]);
    facts = found;
    runtimeFeatures = runtime.features ?? runtimeFeatures;
    const { evictionHard, evictionPressureTransitionPeriod } = config;
    const assessed = assessPressure(
      found,
      evictionHard ?? {},
      evictionPressureTransitionPeriod,
      seen,
      clock.monotonic(),
    );
    seen = assessed.seen;
    const compute = (previous: NodeStatusNow | undefined) =>
      nodeStatus({
        facts: found,
        runtime,
        pressure: assessed.pressure,
        config,
        previous,
        kubeletVersion: options.kubeletVersion,
        notReady: options.notReady?.(),
        declaredFeatures: options.declaredFeatures,
        nowMs: clock.now(),
      });
    let status = compute(observed?.status);
    if (observed === undefined) {
      const wanted = nodeObject(found, config, status);
      const result = await ensureNode({ client, wanted, create: config.registerNode, log, signal });
      if (result === undefined) {
        throw new KeelsonError('NOT_FOUND', `there is no Node ${nodeName}, and registerNode is false`, {
          hint: 'create the Node, or let the agent do it',
        });
      }
      observed = result.node;
      tellPodCidrs();
      log.info({ nodeName, created: result.created }, 'the node is registered');
      follow();
      registered.resolve();
      if (result.created) {
        reportedAt = clock.monotonic();
        tell(undefined, status);
        return isReady(status);
      }
      status = compute(observed.status);
    }
    const before: NodeStatusNow | undefined = observed.status;
    const due = clock.monotonic() - reportedAt >= config.nodeStatusReportFrequency;
    if (!due && !statusChanged(before, status)) return isReady(status);
    const patch = { status: statusPatch(before, status, true) };
    observe(await client.patch<Node>(`${path}/status`, 'strategic', patch, { signal }));
    reportedAt = clock.monotonic();
    tell(before, status);
    return isReady(status);
  }

  async function run(): Promise<void> {
    let failures = 0;
    while (!signal.aborted) {
      poked = false;
      let waitMs: number;
      try {
        const ready = await sync();
        failures = 0;
        const starting = !ready && clock.monotonic() - began < startingMs;
        waitMs = starting
          ? Math.min(startingIntervalMs, config.nodeStatusUpdateFrequency)
          : config.nodeStatusUpdateFrequency;
      } catch (error) {
        if (signal.aborted) break;
        failures++;
        if (apiStatus(error) === 404) {
          observed = undefined;
        }
        if (failures <= 3 || failures % 10 === 0) {
          log.warn({ err: error, failures }, "this Node's status was not written");
        }
        waitMs = backoffDelay(failures, random(), retry);
      }
      if (poked && failures === 0) continue;
      const waiting = new AbortController();
      wake = () => waiting.abort();
      const onAbort = () => waiting.abort();
      signal.addEventListener('abort', onAbort, { once: true });
      // After a failure the wait is kept to: what pokes may not make a loop.
      if (failures > 0) wake = () => {};
      if (!signal.aborted) await sleep(clock, waitMs, waiting.signal).catch(() => {});
      signal.removeEventListener('abort', onAbort);
      wake = () => {};
    }
    registered.reject(new KeelsonError('ABORTED', `node ${nodeName} was closed before it was registered`));
  }

  events.event(about(), 'Normal', 'Starting', 'Starting keelson.');
  const ended = run();

  return {
    registered: registered.promise,
    poke,
    current: () => observed,
    addresses: () => facts?.addresses ?? [],
    runtimeFeatures: () => runtimeFeatures,
    objectTtlMs() {
      const seconds = Number(observed?.metadata?.annotations?.[ttlAnnotation] ?? Number.NaN);
      return Number.isFinite(seconds) && seconds >= 0 ? seconds * 1000 : defaultTtlMs;
    },
    async close() {
      controller.abort(new KeelsonError('ABORTED', `node ${nodeName} was closed`));
      await Promise.all([ended, reflector?.close(), lease?.close()]);
    },
  };
}

function readyOf(node: Node | undefined): string | undefined {
  return node?.status?.conditions?.find(({ type }) => type === 'Ready')?.status;
}

function isReady(status: NodeStatusNow): boolean {
  return status.conditions?.some(({ type, status: value }) => type === 'Ready' && value === 'True') ?? false;
}

/** resourceVersions of one resource are ordered (KEP-5504); what is not a number is taken to be newer. */
function isOlder(a: Node, b: Node): boolean {
  const [left = '', right = ''] = [a.metadata?.resourceVersion, b.metadata?.resourceVersion];
  if (a.metadata?.uid !== b.metadata?.uid || !/^\d+$/.test(left) || !/^\d+$/.test(right)) return false;
  return BigInt(left) < BigInt(right);
}
