/** The event recorder: takes events at any rate, writes them to the apiserver one after the other when it can. */
import { type Clock, rfc3339, sleep } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { MetricsSource } from '../metrics/source.ts';
import { apiStatus, retryAfterMs } from './answers.ts';
import { backoffDelay } from './backoff.ts';
import { type EventRecord, type InvolvedObject, makeCorrelator } from './correlation.ts';
import { makeTokenBucket } from './rates.ts';
import type { ApiserverClient, CoreEvent, EventRecorder } from './types.ts';

export interface EventRecorderOptions {
  /** None: events are only logged. */
  readonly client?: ApiserverClient;
  /** Default `kubelet`: what users and tools filter for. */
  readonly component?: string;
  /** The node's name. */
  readonly host: string;
  readonly clock: Clock;
  readonly log: Logger;
  /** Writes per second (eventRecordQPS); 0: no limit. Default 50. */
  readonly qps?: number;
  /** Default 100. */
  readonly burst?: number;
  /** In [0, 1). Default Math.random. */
  readonly random?: () => number;
}

export interface EventWriter extends EventRecorder {
  /** Events not yet written. */
  readonly pending: number;
  readonly source: MetricsSource;
  /** Stops writing; what is still pending is lost. */
  close(): Promise<void>;
}

/** More are not kept while the apiserver is away: the oldest of the normal ones goes, then of the warnings. */
const spoolLimit = 1000;
/** An event that the apiserver refuses this often, while it answers, must not hold up the others (client-go's figure). */
const mostRefusals = 12;
const longestMessage = 4096;
const longestName = 253;
/**
 * Events are written when none has come for so long, but no later than `longestBehindMs` after the first one: they go behind
 * the work that they tell of, since a start of many pods wants the machine and the apiserver for itself.
 */
const behindMs = 500;
/** Nobody waits longer for an event than that; for a warning no longer than `behindMs`. */
const longestBehindMs = 5000;
const retry = { baseMs: 1000, maxMs: 30_000 };

/** A record on its way, and the name that it has at the apiserver. */
interface Posted {
  name: string;
  exists: boolean;
  queued: boolean;
  refusals: number;
}

export function makeEventRecorder(options: EventRecorderOptions): EventWriter {
  const {
    client,
    clock,
    log,
    host,
    component = 'kubelet',
    qps = 50,
    burst = 100,
    random = Math.random,
  } = options;
  const correlator = makeCorrelator();
  const bucket = qps > 0 ? makeTokenBucket({ perSecond: qps, burst }) : undefined;
  const posted = new WeakMap<EventRecord, Posted>();
  const controller = new AbortController();
  const { signal } = controller;
  let queue: EventRecord[] = [];
  let lastName = 0n;
  /** Monotonic, in milliseconds. */
  let newestAt = 0;
  let warned = false;
  /** Since the apiserver took one last. */
  let dropped = 0;
  const counts = { written: 0, full: 0, refused: 0, rate: 0 };
  let writing: Promise<void> | undefined;

  /** client-go names events by the object and the time in nanoseconds, in hexadecimal. */
  function nameFor(about: InvolvedObject): string {
    const nanoseconds = BigInt(Math.floor(clock.now() * 1000)) * 1000n;
    lastName = nanoseconds > lastName ? nanoseconds : lastName + 1n;
    const suffix = `.${lastName.toString(16)}`;
    return about.name.slice(0, longestName - suffix.length) + suffix;
  }

  function enqueue(record: EventRecord): void {
    let state = posted.get(record);
    if (state === undefined) {
      state = { name: nameFor(record.occurrence.about), exists: false, queued: false, refusals: 0 };
      posted.set(record, state);
    }
    if (state.queued) return; // Its count has grown; it is written once.
    state.queued = true;
    queue.push(record);
    newestAt = clock.monotonic();
    warned ||= record.occurrence.type === 'Warning';
    makeRoom();
    writing ??= write().finally(() => {
      writing = undefined;
    });
  }

  async function untilCalm(): Promise<void> {
    const begun = clock.monotonic();
    for (let now = begun; !signal.aborted; now = clock.monotonic()) {
      const calmAt = warned ? begun + behindMs : Math.min(newestAt + behindMs, begun + longestBehindMs);
      if (now >= calmAt) return;
      await sleep(clock, Math.min(calmAt - now, behindMs), signal).catch(() => {});
    }
  }

  /** What went well is the first to go, so that what went wrong is known after an absence of hours too. */
  function makeRoom(): void {
    if (queue.length <= spoolLimit) return;
    const normal = queue.findIndex(({ occurrence }) => occurrence.type === 'Normal');
    for (const record of queue.splice(Math.max(0, normal), 1)) posted.get(record)!.queued = false;
    counts.full++;
    if (dropped++ === 0) log.warn({ spoolLimit }, 'the apiserver takes no events: the oldest are dropped');
  }

  async function write(): Promise<void> {
    let failures = 0;
    await untilCalm();
    warned = false;
    while (queue.length > 0 && !signal.aborted) {
      const waitMs = bucket?.reserve(clock.monotonic()) ?? 0;
      if (waitMs > 0) await sleep(clock, waitMs, signal).catch(() => {});
      const record = queue.shift();
      if (record === undefined || signal.aborted) return;
      const state = posted.get(record)!;
      state.queued = false;
      try {
        await put(record, state);
        failures = 0;
        state.refusals = 0;
        counts.written++;
        if (dropped > 0) log.warn({ dropped }, 'events were dropped while the apiserver took none');
        dropped = 0;
      } catch (error) {
        if (signal.aborted) return;
        const status = apiStatus(error);
        if (status !== undefined && status >= 500) state.refusals++;
        if (!worthRetrying(error) || state.refusals >= mostRefusals) {
          state.refusals = 0;
          counts.refused++;
          log.debug({ err: error }, 'the apiserver refused an event');
          continue;
        }
        if (!state.queued) {
          state.queued = true;
          queue.unshift(record);
          makeRoom();
        }
        const pauseMs = Math.max(
          backoffDelay(++failures, random(), retry),
          Math.min(retryAfterMs(error) ?? 0, retry.maxMs),
        );
        await sleep(clock, pauseMs, signal).catch(() => {});
      }
    }
  }

  async function put(record: EventRecord, state: Posted): Promise<void> {
    const { about } = record.occurrence;
    const folder = `/api/v1/namespaces/${encodeURIComponent(about.namespace || 'default')}/events`;
    const { count, message, lastMs } = record;
    if (state.exists) {
      try {
        const body = { count, message, lastTimestamp: rfc3339(lastMs) };
        await client!.patch(`${folder}/${encodeURIComponent(state.name)}`, 'strategic', body, { signal });
        return;
      } catch (error) {
        if (apiStatus(error) !== 404) throw error;
        // Events live an hour at the apiserver.
        state.exists = false;
        state.name = nameFor(about);
      }
    }
    try {
      await client!.create(folder, eventObject(record, state.name, component, host), { signal });
    } catch (error) {
      // Our own, when the answer to an earlier try got lost.
      if (apiStatus(error) !== 409) throw error;
    }
    state.exists = true;
  }

  return {
    event(about, type, reason, message) {
      const { name = '', namespace, uid, resourceVersion } = about.metadata ?? {};
      const isNode = about.kind === 'Node';
      const involved: InvolvedObject = {
        apiVersion: about.apiVersion,
        kind: about.kind,
        name,
        namespace: isNode ? undefined : namespace,
        // Before its own uid is known, the node's name: kubectl describe node looks for either.
        uid: isNode ? (uid ?? name) : uid,
        resourceVersion: isNode ? undefined : resourceVersion,
        fieldPath: about.fieldPath,
      };
      const shown = message.length > longestMessage ? `${message.slice(0, longestMessage - 1)}…` : message;
      log.info({ event: reason, type, kind: about.kind, namespace, name, fieldPath: about.fieldPath }, shown);
      if (client === undefined || signal.aborted) return;
      const record = correlator.add(
        { about: involved, type, reason, message: shown },
        clock.now(),
        clock.monotonic(),
      );
      if (record === undefined) counts.rate++;
      else enqueue(record);
    },
    source: {
      families: () => [
        {
          name: 'keelson_events_written_total',
          help: 'Events that the apiserver took, new ones and those that were counted up.',
          type: 'counter',
          samples: [{ value: counts.written }],
        },
        {
          name: 'keelson_events_dropped_total',
          help: 'Events that were not written: too many of one object, too many waiting, or refused by the apiserver.',
          type: 'counter',
          samples: [
            { labels: { reason: 'rate' }, value: counts.rate },
            { labels: { reason: 'spool_full' }, value: counts.full },
            { labels: { reason: 'refused' }, value: counts.refused },
          ],
        },
        {
          name: 'keelson_events_pending',
          help: 'Events that wait to be written.',
          type: 'gauge',
          samples: [{ value: queue.length }],
        },
      ],
    },
    get pending() {
      return queue.length;
    },
    async close() {
      controller.abort(new KeelsonError('ABORTED', 'the event recorder was closed'));
      queue = [];
      await writing;
    },
  };
}

function worthRetrying(error: unknown): boolean {
  const status = apiStatus(error);
  if (status !== undefined) return status === 401 || status === 429 || status >= 500;
  return isError(error, 'API_UNREACHABLE', 'DEADLINE_EXCEEDED', 'API_GARBAGE', 'CONFIG_INVALID');
}

function eventObject(record: EventRecord, name: string, component: string, host: string): CoreEvent {
  const { about, type, reason } = record.occurrence;
  return {
    apiVersion: 'v1',
    kind: 'Event',
    metadata: { name, namespace: about.namespace || 'default' },
    involvedObject: about,
    reason,
    message: record.message,
    type,
    count: record.count,
    firstTimestamp: rfc3339(record.firstMs),
    lastTimestamp: rfc3339(record.lastMs),
    source: { component, host },
    reportingComponent: component,
    reportingInstance: host,
  };
}
