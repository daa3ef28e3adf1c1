/**
 * Follows a collection: lists it, then watches it from the list's resourceVersion, for ever. The rules are those of
 * Kubernetes API Concepts, "Efficient detection of changes", and of client-go's reflector.
 */
import type { Clock } from '../../runtime/host/clock.ts';
import { sleep } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { apiStatus, retryAfterMs, watchError } from './answers.ts';
import { backoffDelay, reflectorBackoff } from './backoff.ts';
import type { ApiserverClient, KubeObject, WatchEvent } from './types.ts';

export interface ReflectOptions<T extends KubeObject> {
  readonly client: ApiserverClient;
  /** Of the collection, such as `/api/v1/pods`. */
  readonly path: string;
  /** Selectors. */
  readonly query?: Readonly<Record<string, string>>;
  /** The first complete list, once. What later lists find to be different comes as upserts and deletes. */
  readonly onReplace: (items: readonly T[]) => void;
  /** An object is new or has changed. */
  readonly onUpsert: (object: T) => void;
  /** An object is gone: its last state, or only its metadata where its end was not seen. */
  readonly onDelete: (object: KubeObject) => void;
  /** Told of each failure before it is tried again. */
  readonly onError?: (error: unknown) => void;
  readonly signal?: AbortSignal;
  readonly clock: Clock;
  readonly log: Logger;
  /** In [0, 1). Default Math.random. */
  readonly random?: () => number;
}

export interface Reflector {
  /** Resolves after `onReplace`. Rejects with ABORTED when closed before. */
  readonly synced: Promise<void>;
  /** Does not wait any longer before the next try: for when the apiserver is known to be back. */
  retryNow(): void;
  /** Ends the watch; nothing is delivered afterwards. */
  close(): Promise<void>;
}

const pageSize = 500;
const listDeadlineMs = 60_000;
/** client-go's minWatchTimeout: each watch lasts this long up to twice of it. */
const shortestWatchSeconds = 300;
/** A watch that lasted this long was a good one: after it, the next starts at once. */
const goodWatchMs = 5000;
/**
 * The apiserver sends a bookmark about every minute to those who want them, but does not promise it: only where one
 * was seen, silence means a dead connection.
 */
const silenceMs = 180_000;
/** A proxy's garbage passes; what is still unreadable at the third try stays so. */
const mostUnreadable = 3;

/** What is remembered of an object. */
interface Known {
  version: string;
  readonly uid: string | undefined;
  readonly name: string | undefined;
  readonly namespace: string | undefined;
}

export function reflect<T extends KubeObject>(options: ReflectOptions<T>): Reflector {
  const { client, path, clock, log, random = Math.random } = options;
  const controller = new AbortController();
  const { signal } = controller;
  const known = new Map<string, Known>();
  const synced = Promise.withResolvers<void>();
  synced.promise.catch(() => {}); // Not everybody waits for it.
  /** Where the watch goes on; undefined: list first. */
  let position: string | undefined;
  /** The oldest state that a list may give: anything at first; then nothing older than seen; '' for the newest. */
  let notOlderThan = '0';
  let isSynced = false;
  let retryNow = () => {};
  let bookmarks = false;
  let unreadable: { readonly position: string | undefined; times: number } = {
    position: undefined,
    times: 0,
  };

  const onOuterAbort = () => controller.abort(options.signal!.reason);
  if (options.signal?.aborted) controller.abort(options.signal.reason);
  else options.signal?.addEventListener('abort', onOuterAbort, { once: true });

  /** A consumer that throws is a bug, but must not stop the watch. */
  function deliver(body: () => void): void {
    if (signal.aborted) return;
    try {
      body();
    } catch (err) {
      log.error({ err, path }, 'a consumer of a watch failed');
    }
  }

  async function listAll(): Promise<{ items: T[]; version: string }> {
    const items: T[] = [];
    let page: string | undefined;
    let limit: number | undefined = pageSize;
    for (;;) {
      // With `continue`, a resourceVersion is not allowed: the token holds it.
      const query: Record<string, string> = { ...options.query };
      if (limit !== undefined) query['limit'] = String(limit);
      if (page !== undefined) query['continue'] = page;
      else if (notOlderThan !== '') query['resourceVersion'] = notOlderThan;
      try {
        const list = await client.list<T>(path, { query, signal, deadlineMs: listDeadlineMs });
        items.push(...list.items);
        page = list.metadata.continue || undefined;
        if (page !== undefined) continue;
        const version = list.metadata.resourceVersion;
        if (!version) throw new KeelsonError('API_GARBAGE', `GET ${path}: the list has no resourceVersion`);
        return { items, version };
      } catch (error) {
        // The pages were too old to go on with: everything anew, in one piece (as client-go's pager does).
        if (page === undefined || apiStatus(error) !== 410) throw error;
        items.length = 0;
        page = undefined;
        limit = undefined;
        notOlderThan = '';
      }
    }
  }

  async function list(): Promise<void> {
    const { items, version } = await listAll();
    const fresh = new Map<string, Known>();
    for (const item of items) fresh.set(keyOf(item, path), knownOf(item));
    if (!isSynced) {
      for (const [key, value] of fresh) known.set(key, value);
      deliver(() => options.onReplace(items));
      isSynced = true;
      synced.resolve();
    } else {
      for (const [key, gone] of known) {
        if (fresh.has(key)) continue;
        known.delete(key);
        deliver(() =>
          options.onDelete({ metadata: { uid: gone.uid, name: gone.name, namespace: gone.namespace } }),
        );
      }
      for (const item of items) upsert(item);
    }
    position = version;
    notOlderThan = version;
  }

  function upsert(object: T): void {
    const key = keyOf(object, path);
    const now = knownOf(object);
    if (known.get(key)?.version === now.version && now.version !== '') return;
    known.set(key, now);
    deliver(() => options.onUpsert(object));
  }

  function take(event: WatchEvent<T>): void {
    if (event.type === 'ERROR') throw watchError(`watch of ${path}`, event.object);
    if (event.type === 'BOOKMARK') bookmarks = true;
    else if (event.type === 'DELETED') {
      if (known.delete(keyOf(event.object, path))) deliver(() => options.onDelete(event.object));
    } else upsert(event.object);
    const version = event.object.metadata?.resourceVersion;
    if (version) {
      position = version;
      notOlderThan = version;
    }
  }

  /** Is what follows `position` unreadable again and again? To be asked once for each time. */
  function isStuck(): boolean {
    if (position !== unreadable.position) unreadable = { position, times: 0 };
    return position !== undefined && ++unreadable.times >= mostUnreadable;
  }

  /** One watch to its end. Throws when it breaks. */
  async function watch(): Promise<void> {
    const attempt = new AbortController();
    const onAbort = () => attempt.abort(signal.reason);
    signal.addEventListener('abort', onAbort, { once: true });
    let stopTimer = () => {};
    const listen = () => {
      stopTimer();
      if (!bookmarks) return;
      stopTimer = clock.after(silenceMs, () =>
        attempt.abort(
          new KeelsonError('API_UNREACHABLE', `watch of ${path}: silent for ${silenceMs / 1000} s`),
        ),
      );
    };
    const timeoutSeconds = Math.round(shortestWatchSeconds * (1 + random()));
    try {
      listen();
      const events = client.watch<T>(path, {
        query: {
          ...options.query,
          resourceVersion: position!,
          allowWatchBookmarks: 'true',
          timeoutSeconds: String(timeoutSeconds),
        },
        signal: attempt.signal,
      });
      for await (const event of events) {
        if (signal.aborted) return;
        listen();
        take(event);
      }
    } finally {
      stopTimer();
      signal.removeEventListener('abort', onAbort);
    }
  }

  async function pause(waitMs: number): Promise<void> {
    const waiting = new AbortController();
    retryNow = () => waiting.abort();
    signal.addEventListener('abort', retryNow, { once: true });
    await sleep(clock, waitMs, waiting.signal).catch(() => {});
    signal.removeEventListener('abort', retryNow);
    retryNow = () => {};
  }

  async function run(): Promise<void> {
    let failures = 0;
    while (!signal.aborted) {
      let waitMs = 0;
      let began: number | undefined;
      try {
        if (position === undefined) await list();
        began = clock.monotonic();
        await watch();
        if (clock.monotonic() - began >= goodWatchMs) failures = 0;
        else waitMs = backoffDelay(++failures, random(), reflectorBackoff);
      } catch (error) {
        if (signal.aborted) break;
        if (began !== undefined && clock.monotonic() - began >= goodWatchMs) failures = 0;
        const status = apiStatus(error);
        if (isError(error, 'API_GARBAGE') && isStuck()) {
          // A new list leads past it.
          position = undefined;
          notOlderThan = '';
          waitMs = backoffDelay(++failures, random(), reflectorBackoff);
        } else if (status === 410 || status === 400 || status === 504) {
          // Our position is too old, or newer than the server itself (a restored etcd): only a new list helps.
          position = undefined;
          notOlderThan = '';
          waitMs = failures === 0 ? 0 : backoffDelay(failures, random(), reflectorBackoff);
          failures++;
        } else if (failures === 0 && began !== undefined && isError(error, 'API_UNREACHABLE')) {
          // A broken stream is the usual end of an apiserver's life; another one may be there already.
          failures++;
        } else {
          waitMs = backoffDelay(++failures, random(), reflectorBackoff);
        }
        waitMs = Math.max(waitMs, Math.min(retryAfterMs(error) ?? 0, reflectorBackoff.maxMs));
        log.debug({ err: error, path, waitMs }, 'the watch will be tried again');
        options.onError?.(error);
      }
      if (waitMs > 0 && !signal.aborted) await pause(waitMs);
    }
    synced.reject(new KeelsonError('ABORTED', `watch of ${path} was closed before its first list`));
  }

  const ended = run().finally(() => options.signal?.removeEventListener('abort', onOuterAbort));
  return {
    synced: synced.promise,
    retryNow: () => retryNow(),
    async close() {
      controller.abort(new KeelsonError('ABORTED', `watch of ${path} was closed`));
      await ended;
    },
  };
}

function keyOf(object: KubeObject, path: string): string {
  const { uid, namespace = '', name } = object.metadata ?? {};
  const key = uid ?? (name === undefined ? undefined : `${namespace}/${name}`);
  if (typeof key !== 'string') {
    throw new KeelsonError('API_GARBAGE', `watch of ${path}: an object has neither uid nor name`);
  }
  return key;
}

function knownOf(object: KubeObject): Known {
  const { resourceVersion = '', uid, name, namespace } = object.metadata ?? {};
  return { version: resourceVersion, uid, name, namespace };
}
