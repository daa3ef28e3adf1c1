/** Objects with resource versions, a bounded history of changes, and those who watch it. All in memory. */
import { isDeepStrictEqual } from 'node:util';
import type { Resource, StoredObject, Target } from './resources.ts';
import type { Matcher } from './selectors.ts';
import { expired, notFound } from './status.ts';

interface Change {
  readonly version: number;
  readonly resource: Resource;
  /** The object before; undefined for a new one. */
  readonly before: StoredObject | undefined;
  /** The object after; undefined when it was removed. */
  readonly after: StoredObject | undefined;
}

export interface StoreEvent {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED';
  readonly object: StoredObject;
}

export interface Scope {
  readonly resource: Resource;
  /** Undefined: all namespaces. */
  readonly namespace: string | undefined;
  readonly matches: Matcher;
}

export interface Store {
  /** The resource version of the last change. */
  readonly version: number;
  get(resource: Resource, namespace: string | undefined, name: string): StoredObject | undefined;
  /** Sorted by namespace and name, as etcd's keys are. */
  list(scope: Scope): StoredObject[];
  /** Writes and tells watchers; an object that is equal to the stored one is not a change. Returns what is stored. */
  put(resource: Resource, object: StoredObject): StoredObject;
  /** Returns the object as it was, with the resource version of its removal. */
  remove(resource: Resource, object: StoredObject): StoredObject;
  /** Calls `listener` for every change after `version`, the past ones at once. Throws 410 where they are forgotten. */
  watch(scope: Scope, version: number, listener: (event: StoreEvent) => void): () => void;
  /** Forgets the history: a watch from before now gets 410. */
  compact(): void;
}

const keyOf = (resource: Resource, namespace: string | undefined, name: string) =>
  `${resource.plural}/${resource.namespaced ? namespace : ''}/${name}`;

export function makeStore(historyLimit: number): Store {
  const objects = new Map<string, { resource: Resource; object: StoredObject }>();
  let history: Change[] = [];
  const listeners = new Set<(change: Change) => void>();
  let version = 0;
  let compacted = 0;

  const record = (change: Change) => {
    history.push(change);
    // Cut in halves, so that a long history is not copied at every change.
    if (history.length > historyLimit * 2) {
      history = history.slice(-historyLimit);
      compacted = history[0]!.version - 1;
    }
    for (const listener of listeners) listener(change);
  };

  return {
    get version() {
      return version;
    },
    get: (resource, namespace, name) => objects.get(keyOf(resource, namespace, name))?.object,
    list: ({ resource, namespace, matches }) =>
      [...objects]
        .filter(
          ([, entry]) =>
            entry.resource === resource &&
            (namespace === undefined || entry.object.metadata.namespace === namespace) &&
            matches(entry.object),
        )
        .sort(([a], [b]) => (a < b ? -1 : 1))
        .map(([, entry]) => entry.object),
    put(resource, object) {
      const key = keyOf(resource, object.metadata.namespace, object.metadata.name!);
      const before = objects.get(key)?.object;
      if (before !== undefined && isDeepStrictEqual(withVersion(object, before), before)) return before;
      version++;
      const after = withVersion(object, { metadata: { resourceVersion: String(version) } });
      objects.set(key, { resource, object: after });
      record({ version, resource, before, after });
      return after;
    },
    remove(resource, object) {
      version++;
      objects.delete(keyOf(resource, object.metadata.namespace, object.metadata.name!));
      const last = withVersion(object, { metadata: { resourceVersion: String(version) } });
      record({ version, resource, before: last, after: undefined });
      return last;
    },
    watch(scope, from, listener) {
      if (from < compacted) throw expired(`too old resource version: ${from} (${compacted + 1})`);
      const tell = (change: Change) => {
        const event = eventFor(scope, change);
        if (event !== undefined) listener(event);
      };
      for (const change of history) if (change.version > from) tell(change);
      listeners.add(tell);
      return () => listeners.delete(tell);
    },
    compact() {
      history = [];
      compacted = version;
    },
  };
}

const withVersion = (object: StoredObject, of: Pick<StoredObject, 'metadata'>): StoredObject => ({
  ...object,
  metadata: { ...object.metadata, resourceVersion: of.metadata.resourceVersion },
});

/** An object that begins to match is ADDED for this watcher, one that ceases to is DELETED. */
function eventFor(scope: Scope, { resource, before, after, version }: Change): StoreEvent | undefined {
  if (resource !== scope.resource) return undefined;
  const seen = (object: StoredObject | undefined) =>
    object !== undefined &&
    (scope.namespace === undefined || object.metadata.namespace === scope.namespace) &&
    scope.matches(object);
  const was = seen(before);
  const is = seen(after);
  if (is) return { type: was ? 'MODIFIED' : 'ADDED', object: after! };
  if (!was) return undefined;
  return {
    type: 'DELETED',
    object: withVersion(before!, { metadata: { resourceVersion: String(version) } }),
  };
}

/** The object that the path names. Throws 404. */
export function found(store: Store, { resource, namespace, name }: Target): StoredObject {
  const object = store.get(resource, namespace, name!);
  if (object === undefined) throw notFound(resource, name!);
  return object;
}
