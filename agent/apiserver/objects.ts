/**
 * The ConfigMaps, Secrets and Services that pods refer to.
 *
 * kubelet's "Cache" strategy: an object is fetched when somebody wants it and what is had is older than its time to
 * live, or older than the newest pod of its namespace. Its default, one watch per object, would hold a stream (about
 * 50 KiB here, and one at the apiserver) for each ConfigMap of each pod.
 */
import type { Clock } from '../../runtime/host/clock.ts';
import { abortError, isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { apiStatus } from './answers.ts';
import { abortable } from './credentials.ts';
import { type Reflector, reflect } from './reflector.ts';
import type { ApiserverClient, ObjectCache, Service } from './types.ts';

export interface ObjectCacheOptions {
  /** None: nothing can be had (NOT_FOUND), and there are no services. */
  readonly client?: ApiserverClient;
  readonly clock: Clock;
  readonly log: Logger;
  /** Time to live, from the node's annotation `node.alpha.kubernetes.io/ttl`. Default 60,000. */
  readonly ttlMs?: () => number;
  /** In [0, 1). Default Math.random. */
  readonly random?: () => number;
}

export interface ClosableObjectCache extends ObjectCache {
  close(): Promise<void>;
}

/** Pods that start together share what was fetched so recently. */
const sharedMs = 500;
const defaultTtlMs = 60_000;
const maxEntries = 1000;
const servicesDeadlineMs = 15_000;

interface Entry {
  /** When the fetch of `object` began, monotonic milliseconds. */
  fetchedAt: number;
  object: unknown;
  running: Promise<unknown> | undefined;
}

export function makeObjectCache(options: ObjectCacheOptions): ClosableObjectCache {
  const { client, clock, log, ttlMs = () => defaultTtlMs } = options;
  const entries = new Map<string, Entry>();
  const pods = new Map<string, string>();
  /** Per namespace: what was fetched earlier is too old for its newest pod. */
  const freshSince = new Map<string, number>();
  const controller = new AbortController();
  let services: { reflector: Reflector; byUid: Map<string, Service> } | undefined;

  function isFresh(entry: Entry, namespace: string): boolean {
    if (entry.object === undefined) return false;
    const oldest = clock.monotonic() - Math.max(sharedMs, ttlMs());
    return entry.fetchedAt >= Math.max(oldest, freshSince.get(namespace) ?? Number.NEGATIVE_INFINITY);
  }

  async function fetch(path: string, entry: Entry, key: string): Promise<unknown> {
    const began = clock.monotonic();
    try {
      entry.object = await client!.get<object>(path, { signal: controller.signal });
      entry.fetchedAt = began;
      return entry.object;
    } catch (error) {
      const gone = apiStatus(error) === 404 || apiStatus(error) === 403;
      if (gone) entries.delete(key);
      // As kubelet does: what cannot be asked for now is used as it was.
      if (gone || entry.object === undefined || controller.signal.aborted) throw error;
      log.warn({ err: error, path }, 'the apiserver gives no newer state: an older one is used');
      return entry.object;
    }
  }

  function followServices(following: ApiserverClient): { reflector: Reflector; byUid: Map<string, Service> } {
    const byUid = new Map<string, Service>();
    const put = (service: Service) => byUid.set(service.metadata?.uid ?? '', slim(service));
    const reflector = reflect<Service>({
      client: following,
      path: '/api/v1/services',
      // Headless ones have no address for an environment variable.
      query: { labelSelector: '!service.kubernetes.io/headless' },
      onReplace: (items) => items.forEach(put),
      onUpsert: put,
      onDelete: (object) => byUid.delete(object.metadata?.uid ?? ''),
      signal: controller.signal,
      clock,
      log,
      random: options.random,
    });
    return { reflector, byUid };
  }

  return {
    async get<T>(kind: 'configmaps' | 'secrets', namespace: string, name: string, signal?: AbortSignal) {
      const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/${kind}/${encodeURIComponent(name)}`;
      const what = `GET ${path}`;
      if (signal?.aborted) throw abortError(signal, what);
      if (client === undefined) {
        throw new KeelsonError('NOT_FOUND', `${what}: this node has no apiserver`, {
          hint: 'pods without an apiserver cannot use ConfigMaps and Secrets',
        });
      }
      const key = `${namespace}/${kind}/${name}`;
      let entry = entries.get(key);
      if (entry === undefined) {
        entry = { fetchedAt: Number.NEGATIVE_INFINITY, object: undefined, running: undefined };
        entries.set(key, entry);
        if (entries.size > maxEntries) entries.delete(entries.keys().next().value!);
      }
      if (isFresh(entry, namespace)) return entry.object as T;
      const wanted = entry;
      wanted.running ??= fetch(path, wanted, key).finally(() => {
        wanted.running = undefined;
      });
      return (await abortable(wanted.running, signal, what)) as T;
    },
    async services(namespace) {
      if (client === undefined) return [];
      services ??= followServices(client);
      const { reflector, byUid } = services;
      await synced(reflector, clock);
      return [...byUid.values()].filter(
        ({ metadata }) =>
          metadata?.namespace === namespace ||
          (metadata?.namespace === 'default' && metadata.name === 'kubernetes'),
      );
    },
    retain(podUid, namespace) {
      if (pods.get(podUid) === namespace) return;
      pods.set(podUid, namespace);
      freshSince.set(namespace, clock.monotonic() - sharedMs);
    },
    release(podUid) {
      const namespace = pods.get(podUid);
      if (namespace === undefined) return;
      pods.delete(podUid);
      if ([...pods.values()].includes(namespace)) return;
      freshSince.delete(namespace);
      for (const key of [...entries.keys()]) if (key.startsWith(`${namespace}/`)) entries.delete(key);
    },
    async close() {
      controller.abort(new KeelsonError('ABORTED', 'the object cache was closed'));
      await services?.reflector.close();
    },
  };
}

/** The first list of services; it must not hold up a pod for ever. */
async function synced(reflector: Reflector, clock: Clock): Promise<void> {
  let cancel = () => {};
  const late = new Promise<never>((_, reject) => {
    cancel = clock.after(servicesDeadlineMs, () =>
      reject(
        new KeelsonError(
          'UNAVAILABLE',
          'services have not yet been read at least once, cannot construct envvars',
          {
            hint: 'look whether the apiserver answers and lets this node list services',
          },
        ),
      ),
    );
  });
  try {
    await Promise.race([reflector.synced, late]);
  } catch (error) {
    throw isError(error) ? error : new KeelsonError('INTERNAL', 'services cannot be read', { cause: error });
  } finally {
    cancel();
  }
}

/** Only what environment variables need: a cluster may have thousands. */
function slim({ metadata, spec }: Service): Service {
  return {
    metadata: { name: metadata?.name, namespace: metadata?.namespace, uid: metadata?.uid },
    spec: {
      type: spec?.type,
      clusterIP: spec?.clusterIP,
      clusterIPs: spec?.clusterIPs,
      ports: spec?.ports?.map(({ name, port, protocol }) => ({ name, port, protocol })),
    },
  };
}
