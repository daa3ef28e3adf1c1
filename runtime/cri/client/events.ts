/**
 * What happens to the containers of another runtime.
 *
 * Its event stream tells where it is served. But runtimes that have it switched off keep the stream open without a word
 * (CRI-O), others drop events that nobody takes in time. So this is the one place that polls: each second, as kubelet's
 * PLEG does, everything is listed and compared, until the first event has come through the stream; then only the stream
 * counts, until it breaks. What happened while the runtime was away is found by the same comparison.
 */
import type { ContainerEvent, PodSandboxMetadata, RuntimeService } from '../../api.ts';
import { type Clock, sleep } from '../../host/clock.ts';
import { isError } from '../../host/errors.ts';
import type { Logger } from '../../host/log.ts';
import { eventTypes } from '../names.ts';
import type { Wire } from '../wire/types.ts';
import { milliseconds } from './answers.ts';

/** Kubelet's own period. */
const relistMs = 1000;

export interface EventsOptions {
  readonly runtime: Pick<RuntimeService, 'listPodSandbox' | 'listContainers'>;
  /** GetContainerEvents; resolves or rejects when the stream ends. */
  stream(heard: (message: Wire<'ContainerEventResponse'>) => void, signal: AbortSignal): Promise<void>;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface Events {
  listen(listener: (event: ContainerEvent) => void): () => void;
  close(): void;
}

/** What was there at the last look. `state`: of the sandbox or the container. */
export interface Seen {
  readonly state: 'created' | 'running' | 'ended';
  readonly sandbox: PodSandboxMetadata;
}

type EventType = ContainerEvent['type'];

/** The events that lead from one look to the next. Pure. */
export function eventsBetween(
  before: ReadonlyMap<string, Seen>,
  after: ReadonlyMap<string, Seen>,
  at: number,
): ContainerEvent[] {
  const events: ContainerEvent[] = [];
  for (const [id, { state, sandbox }] of after) {
    const known = before.get(id);
    const types: EventType[] = known === undefined ? ['created'] : [];
    if (known?.state !== state && state !== 'created')
      types.push(state === 'running' ? 'started' : 'stopped');
    events.push(...types.map((type) => ({ type, containerId: id, at, sandbox })));
  }
  for (const [id, { sandbox }] of before) {
    if (!after.has(id)) events.push({ type: 'deleted', containerId: id, at, sandbox });
  }
  return events;
}

/** Nothing is asked before somebody listens. */
export function makeEvents({ runtime, stream, clock, log }: EventsOptions): Events {
  const listeners = new Set<(event: ContainerEvent) => void>();
  const ending = new AbortController();
  /** Undefined before the first look, which tells nothing. */
  let seen: Map<string, Seen> | undefined;
  /** The stream has given an event since it was opened. */
  let proven = false;
  let begun = false;
  let looking = false;
  let cancel = () => {};

  const emit = (event: ContainerEvent) => {
    for (const listener of listeners) listener(event);
  };

  const look = async () => {
    const [sandboxes, containers] = await Promise.all([runtime.listPodSandbox(), runtime.listContainers()]);
    const now = new Map<string, Seen>();
    const owners = new Map(sandboxes.map(({ id, metadata }) => [id, metadata]));
    for (const { id, state, metadata } of sandboxes) {
      now.set(id, { state: state === 'ready' ? 'running' : 'ended', sandbox: metadata });
    }
    for (const { id, podSandboxId, state } of containers) {
      const sandbox = owners.get(podSandboxId);
      const simple = state === 'created' || state === 'running' ? state : 'ended';
      if (sandbox !== undefined) now.set(id, { state: simple, sandbox });
    }
    const before = seen;
    seen = now;
    if (before !== undefined) for (const event of eventsBetween(before, now, clock.now())) emit(event);
  };
  /** One look at a time; looks again after a while as long as the stream has not proved itself. */
  const relist = () => {
    cancel();
    if (looking) return;
    looking = true;
    look()
      .catch((error: unknown) => log.debug({ err: error }, 'cannot list what the container runtime has'))
      .finally(() => {
        looking = false;
        if (!proven && !ending.signal.aborted) cancel = clock.after(relistMs, relist);
      });
  };

  const hear = (message: Wire<'ContainerEventResponse'>) => {
    const { containerId, containerEventType, createdAt, podSandboxStatus } = message;
    proven = true;
    const sandbox = podSandboxStatus?.metadata ?? seen?.get(containerId)?.sandbox;
    // An event that does not say whose it is, or what it is.
    if (sandbox === undefined || typeof containerEventType === 'number') return relist();
    const type = eventTypes[containerEventType];
    if (type === 'deleted') seen?.delete(containerId);
    else {
      const state = type === 'created' ? type : type === 'started' ? 'running' : 'ended';
      seen?.set(containerId, { state, sandbox });
    }
    emit({ type, containerId, at: milliseconds(createdAt), sandbox });
  };

  const follow = async () => {
    while (!ending.signal.aborted) {
      try {
        await stream(hear, ending.signal);
      } catch (error) {
        if (ending.signal.aborted) return;
        if (isError(error, 'UNIMPLEMENTED')) {
          log.info('the container runtime has no events: it is asked each second');
          return;
        }
        log.debug({ err: error }, 'the events of the container runtime broke off');
      }
      proven = false;
      relist();
      await sleep(clock, relistMs, ending.signal).catch(() => {});
    }
  };

  return {
    listen(listener) {
      listeners.add(listener);
      if (!begun) {
        begun = true;
        relist();
        void follow();
      }
      return () => listeners.delete(listener);
    },
    close() {
      ending.abort();
      cancel();
    },
  };
}
