/** Deletion: preconditions, the grace of pods, finalizers, and namespaces that end with what is in them. */
import type { Pod } from 'kubernetes-types/core/v1.js';
import { rfc3339 } from '../../../runtime/host/clock.ts';
import { type Resource, resourceNamed, resources, type StoredObject, type Target } from './resources.ts';
import { conflict } from './status.ts';
import { found, type Store } from './store.ts';

export interface DeleteOptions {
  readonly gracePeriodSeconds?: number;
  readonly preconditions?: { readonly uid?: string; readonly resourceVersion?: string };
}

export interface Deletion {
  /** A DELETE request: the object as it is now, or as it was when it has gone. */
  remove(target: Target, options: DeleteOptions): StoredObject;
  /** Removes for good; the last pod of a terminating namespace takes it along. */
  erase(resource: Resource, object: StoredObject): StoredObject;
}

const pods = resourceNamed('pods');
const namespaces = resourceNamed('namespaces');
const modified =
  'the object has been modified; please apply your changes to the latest version and try again';

/** Throws 409 unless uid and resourceVersion are as wanted, where they are given. */
export function checkPreconditions(
  resource: Resource,
  stored: StoredObject,
  wanted: { readonly uid?: string | undefined; readonly resourceVersion?: string | undefined },
): void {
  const { uid, resourceVersion, name } = stored.metadata;
  if (wanted.uid && wanted.uid !== uid) {
    throw conflict(
      resource,
      name!,
      `Precondition failed: UID in precondition: ${wanted.uid}, UID in object meta: ${uid}`,
    );
  }
  if (wanted.resourceVersion && wanted.resourceVersion !== resourceVersion)
    throw conflict(resource, name!, modified);
}

export function makeDeletion(store: Store, now: () => number): Deletion {
  const erase = (resource: Resource, object: StoredObject): StoredObject => {
    const gone = store.remove(resource, object);
    const namespace = store.get(namespaces, undefined, object.metadata.namespace ?? '');
    if (namespace?.metadata.deletionTimestamp !== undefined) emptyNamespace(namespace);
    return gone;
  };

  const emptyNamespace = (namespace: StoredObject) => {
    const name = namespace.metadata.name!;
    const all = { namespace: name, matches: () => true };
    if (store.list({ resource: pods, ...all }).length > 0) return;
    for (const resource of resources.filter(({ namespaced }) => namespaced)) {
      for (const object of store.list({ resource, ...all })) store.remove(resource, object);
    }
    store.remove(namespaces, namespace);
  };

  const remove = (target: Target, options: DeleteOptions): StoredObject => {
    const { resource } = target;
    const stored = found(store, target);
    checkPreconditions(resource, stored, options.preconditions ?? {});
    const object = structuredClone(stored);
    const { metadata } = object;
    if (resource.kind === 'Namespace') {
      metadata.deletionTimestamp ??= rfc3339(now());
      object['status'] = { phase: 'Terminating' };
      const ending = store.put(resource, object);
      const inside = store.list({ resource: pods, namespace: metadata.name, matches: () => true });
      for (const pod of inside) {
        remove(
          { resource: pods, namespace: metadata.name, name: pod.metadata.name, subresource: undefined },
          {},
        );
      }
      const still = store.get(namespaces, undefined, metadata.name!);
      if (still !== undefined) emptyNamespace(still);
      return ending;
    }
    const asked = resource.kind === 'Pod' ? graceOf(object as Pod, options.gracePeriodSeconds) : 0;
    const before = metadata.deletionGracePeriodSeconds;
    const finalizers = (metadata.finalizers ?? []).length > 0;
    // A deletion that has begun can only be shortened (registry/rest/delete.go, BeforeDelete).
    if (metadata.deletionTimestamp !== undefined && before !== undefined) {
      if (options.gracePeriodSeconds === undefined || options.gracePeriodSeconds >= before) {
        if (before > 0 || finalizers) return stored;
      }
    }
    const begun = metadata.deletionTimestamp;
    const grace = begun !== undefined ? (options.gracePeriodSeconds ?? asked) : asked;
    if (resource.kind !== 'Pod' && !finalizers) return erase(resource, object);
    const start = begun === undefined ? now() : Date.parse(begun) - (before ?? 0) * 1000;
    metadata.deletionTimestamp = rfc3339(start + grace * 1000);
    metadata.deletionGracePeriodSeconds = grace;
    if (begun === undefined && metadata.generation !== undefined) metadata.generation++;
    const ending = store.put(resource, object);
    // Watchers of pods see the end announced also where it comes at once.
    return grace === 0 && !finalizers ? erase(resource, ending) : ending;
  };

  return { remove, erase };
}

/** podStrategy.CheckGracefulDelete of the real apiserver. */
function graceOf(pod: Pod, wanted: number | undefined): number {
  const phase = pod.status?.phase;
  if (!pod.spec?.nodeName || phase === 'Failed' || phase === 'Succeeded') return 0;
  const grace = wanted ?? pod.spec.terminationGracePeriodSeconds ?? 0;
  return grace < 0 ? 1 : grace;
}
