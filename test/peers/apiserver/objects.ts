/** Create, replace, patch, delete and the subresources: what happens to stored objects, without HTTP. */
import { randomBytes, randomUUID } from 'node:crypto';
import type { Pod } from 'kubernetes-types/core/v1.js';
import { rfc3339 } from '../../../runtime/host/clock.ts';
import { makeAdmission } from './admission.ts';
import { checkPreconditions, type DeleteOptions, makeDeletion } from './deletion.ts';
import { applyPatch } from './patch.ts';
import { type Resource, resourceNamed, type StoredObject, type Target } from './resources.ts';
import { decode, decodeMembers } from './shape.ts';
import {
  alreadyExists,
  badRequest,
  conflict,
  forbidden,
  invalid,
  noSuchPath,
  notFound,
  StatusError,
} from './status.ts';
import { found, type Store } from './store.ts';
import { createToken } from './tokens.ts';
import { validateNew, validateUpdate } from './validation.ts';

export interface Objects {
  create(target: Target, body: StoredObject): StoredObject;
  /** `created` tells 201 from 200. */
  replace(target: Target, body: StoredObject): { object: StoredObject; created: boolean };
  patch(target: Target, contentType: string, body: unknown): StoredObject;
  /** The object as it is now, or as it was when it has gone. */
  remove(target: Target, options: DeleteOptions): StoredObject;
  get(target: Target): StoredObject;
  bind(target: Target, body: StoredObject): void;
  createToken(target: Target, body: StoredObject): StoredObject;
}

const pods = resourceNamed('pods');
const namespaces = resourceNamed('namespaces');
const accounts = resourceNamed('serviceaccounts');
const configMaps = resourceNamed('configmaps');

export function makeObjects(store: Store, now: () => number, authority: string): Objects {
  const stamp = () => rfc3339(now());
  const admit = makeAdmission(store);
  const { remove, erase } = makeDeletion(store, now);

  /** What a controller manager would add to a new namespace. */
  const furnish = (namespace: string) => {
    const into = (resource: Resource, name: string, rest: object) =>
      create(
        { resource, namespace, name: undefined, subresource: undefined },
        { apiVersion: 'v1', kind: resource.kind, metadata: { name }, ...rest },
      );
    into(accounts, 'default', {});
    into(configMaps, 'kube-root-ca.crt', { data: { 'ca.crt': authority } });
  };

  const create = (target: Target, body: StoredObject): StoredObject => {
    const { resource, namespace } = target;
    const object = ofTarget(target, body);
    const { metadata } = object;
    if (metadata.resourceVersion)
      throw badRequest('resourceVersion should not be set on objects to be created');
    if (resource.namespaced && store.get(namespaces, undefined, namespace!) === undefined) {
      throw notFound(namespaces, namespace!);
    }
    if (!metadata.name && metadata.generateName) {
      metadata.name = metadata.generateName + randomBytes(4).toString('hex').slice(0, 5);
    }
    const errors = validateNew(resource, object);
    if (errors.length > 0) throw invalid(resource, metadata.name ?? '', errors);
    const space = store.get(namespaces, undefined, namespace ?? '');
    if (space?.metadata.deletionTimestamp !== undefined) {
      const why = `unable to create new content in namespace ${namespace} because it is being terminated`;
      throw forbidden(resource, metadata.name!, why);
    }
    if (store.get(resource, namespace, metadata.name!) !== undefined)
      throw alreadyExists(resource, metadata.name!);
    admit(resource, object);
    metadata.uid = randomUUID();
    metadata.creationTimestamp = stamp();
    delete metadata.deletionTimestamp;
    delete metadata.deletionGracePeriodSeconds;
    if (resource.generation) metadata.generation = 1;
    const stored = store.put(resource, object);
    if (resource.kind === 'Namespace') furnish(metadata.name!);
    return stored;
  };

  /** Keeps what a write to `target` may not change, then stores; the last finalizer of a deleted object removes it. */
  const update = (target: Target, stored: StoredObject, wanted: StoredObject): StoredObject => {
    const { resource, subresource } = target;
    const next = structuredClone(wanted);
    const kept = stored.metadata;
    next.metadata = {
      ...next.metadata,
      name: kept.name,
      uid: kept.uid,
      creationTimestamp: kept.creationTimestamp,
      deletionTimestamp: kept.deletionTimestamp,
      deletionGracePeriodSeconds: kept.deletionGracePeriodSeconds,
      generation: kept.generation,
      ...(subresource === 'status'
        ? { ownerReferences: kept.ownerReferences, finalizers: kept.finalizers }
        : {}),
    };
    for (const [key, value] of Object.entries(next.metadata)) {
      if (value === undefined) delete (next.metadata as Record<string, unknown>)[key];
    }
    if (subresource === 'status') next['spec'] = stored['spec'];
    else if (resource.status) next['status'] = stored['status'];
    for (const key of ['spec', 'status']) if (next[key] === undefined) delete next[key];
    const errors = subresource === 'status' ? [] : validateUpdate(resource, stored, next);
    if (errors.length > 0) throw invalid(resource, kept.name!, errors);
    if (resource.generation && JSON.stringify(next['spec']) !== JSON.stringify(stored['spec'])) {
      next.metadata.generation = (kept.generation ?? 0) + 1;
    }
    const finished =
      kept.deletionTimestamp !== undefined &&
      (kept.deletionGracePeriodSeconds ?? 0) === 0 &&
      (next.metadata.finalizers ?? []).length === 0;
    return finished ? erase(resource, next) : store.put(resource, next);
  };

  return {
    get: (target) => found(store, target),
    createToken: (target, body) => createToken(store, now(), target, body),
    create,
    remove,
    replace(target, body) {
      const { resource, namespace, name } = target;
      const object = ofTarget(target, body);
      if (object.metadata.name !== name) {
        throw badRequest(
          `the name of the object (${object.metadata.name}) does not match the name on the URL (${name})`,
        );
      }
      const stored = store.get(resource, namespace, name!);
      if (stored === undefined) {
        if (!resource.createOnUpdate || target.subresource !== undefined) throw notFound(resource, name!);
        delete object.metadata.resourceVersion;
        return { object: create(target, object), created: true };
      }
      checkPreconditions(resource, stored, object.metadata);
      return { object: update(target, stored, object), created: false };
    },
    patch(target, contentType, body) {
      const { resource } = target;
      const stored = found(store, target);
      const patched = decode(resource, applyPatch(contentType, resource.kind, stored, body) as StoredObject);
      const { uid, resourceVersion } = patched.metadata ?? {};
      if (uid && uid !== stored.metadata.uid) {
        const message = `Invalid value: ${JSON.stringify(uid)}: field is immutable`;
        throw invalid(resource, target.name!, [
          { field: 'metadata.uid', reason: 'FieldValueInvalid', message },
        ]);
      }
      checkPreconditions(resource, stored, { resourceVersion });
      return update(target, stored, ofTarget(target, patched));
    },
    bind(target, given) {
      const body = decodeMembers(given, ['target']);
      const pod = structuredClone(found(store, target));
      const { name } = pod.metadata;
      const node = (body['target'] as { name?: string } | undefined)?.name;
      if (!node) throw badRequest('binding: target.name is missing');
      const spec = pod['spec'] as NonNullable<Pod['spec']>;
      if (spec.nodeName) {
        throw conflict(
          { ...pods, plural: 'pods/binding' },
          name!,
          `pod ${name} is already assigned to node "${spec.nodeName}"`,
        );
      }
      spec.nodeName = node;
      const scheduled = {
        type: 'PodScheduled',
        status: 'True',
        lastProbeTime: null,
        lastTransitionTime: stamp(),
      };
      pod['status'] = { ...(pod['status'] as object), conditions: [scheduled] };
      store.put(pods, pod);
    },
  };
}

/** The body as an object of the resource that the path names. Throws 400 where they disagree. */
function ofTarget({ resource, namespace, subresource }: Target, given: StoredObject): StoredObject {
  const wanted = resource.group === '' ? resource.version : `${resource.group}/${resource.version}`;
  const body = decode(resource, given);
  if (subresource !== undefined && subresource !== 'status') throw noSuchPath();
  if (body.apiVersion !== undefined && body.apiVersion !== wanted) {
    const why = `the API version in the data (${body.apiVersion}) does not match the expected API version (${wanted})`;
    throw badRequest(why);
  }
  if (body.kind !== undefined && body.kind !== resource.kind) {
    throw badRequest(
      `the kind in the data (${body.kind}) does not match the expected kind (${resource.kind})`,
    );
  }
  const metadata = { ...body.metadata };
  if (resource.namespaced) {
    if (metadata.namespace && metadata.namespace !== namespace) {
      throw new StatusError(
        400,
        'BadRequest',
        'the namespace of the provided object does not match the namespace sent on the request',
      );
    }
    metadata.namespace = namespace;
  } else delete metadata.namespace;
  return structuredClone({ ...body, apiVersion: wanted, kind: resource.kind, metadata });
}
