/** The resources that the development apiserver stores, and the shape that all stored objects have. */
import type { ObjectMeta } from 'kubernetes-types/meta/v1.js';
import type { ResourceName } from './status.ts';

/** Any object as it is stored. */
export interface StoredObject {
  apiVersion: string;
  kind: string;
  metadata: { -readonly [Field in keyof ObjectMeta]: ObjectMeta[Field] };
  [field: string]: unknown;
}

export interface Resource extends ResourceName {
  readonly version: string;
  readonly namespaced: boolean;
  /** Has a /status subresource: writes of the object leave the status, writes of /status leave the rest. */
  readonly status: boolean;
  /** PUT of a name that is not there creates it. */
  readonly createOnUpdate: boolean;
  /** Has metadata.generation. */
  readonly generation: boolean;
  /** Fields for field selectors besides metadata.name and metadata.namespace. */
  readonly selectable: readonly string[];
}

const core = { group: '', version: 'v1', namespaced: true, status: false, createOnUpdate: false };
const plain = { ...core, generation: false, selectable: [] };

export const resources = [
  {
    ...plain,
    plural: 'namespaces',
    kind: 'Namespace',
    namespaced: false,
    status: true,
    selectable: ['status.phase'],
  },
  {
    ...plain,
    plural: 'pods',
    kind: 'Pod',
    status: true,
    generation: true,
    selectable: [
      'spec.nodeName',
      'spec.restartPolicy',
      'spec.schedulerName',
      'spec.serviceAccountName',
      'status.phase',
      'status.podIP',
      'status.nominatedNodeName',
    ],
  },
  {
    ...plain,
    plural: 'nodes',
    kind: 'Node',
    namespaced: false,
    status: true,
    selectable: ['spec.unschedulable'],
  },
  { ...plain, plural: 'configmaps', kind: 'ConfigMap' },
  { ...plain, plural: 'secrets', kind: 'Secret', selectable: ['type'] },
  {
    ...plain,
    plural: 'services',
    kind: 'Service',
    status: true,
    selectable: ['spec.clusterIP', 'spec.type'],
  },
  { ...plain, plural: 'serviceaccounts', kind: 'ServiceAccount' },
  {
    ...plain,
    plural: 'events',
    kind: 'Event',
    createOnUpdate: true,
    selectable: [
      'involvedObject.kind',
      'involvedObject.namespace',
      'involvedObject.name',
      'involvedObject.uid',
      'involvedObject.fieldPath',
      'reason',
      'reportingComponent',
      'source',
      'type',
    ],
  },
  {
    ...plain,
    group: 'coordination.k8s.io',
    plural: 'leases',
    kind: 'Lease',
    createOnUpdate: true,
  },
] as const satisfies readonly Resource[];

export type Plural = (typeof resources)[number]['plural'];

const byPlural = new Map<string, Resource>(resources.map((resource) => [resource.plural, resource]));

export const resourceNamed = (plural: Plural): Resource => byPlural.get(plural)!;

/** A path segment without its escapes; what is no UTF-8 names nothing. */
function unescaped(segment: string): string {
  try {
    return decodeURIComponent(segment);
  } catch {
    return '';
  }
}

/** What a request path names. */
export interface Target {
  readonly resource: Resource;
  readonly namespace: string | undefined;
  readonly name: string | undefined;
  readonly subresource: string | undefined;
}

/** Reads `/api/v1/namespaces/default/pods/web/status` and the like; undefined for what is not a stored resource. */
export function targetOf(path: string): Target | undefined {
  const parts = path.split('/').slice(1).map(unescaped);
  const group = parts[0] === 'api' ? '' : parts[0] === 'apis' ? parts[1] : undefined;
  const version = parts[0] === 'api' ? parts[1] : parts[2];
  const rest = parts.slice(parts[0] === 'api' ? 2 : 3);
  if (group === undefined || version !== 'v1' || rest.includes('')) return undefined;
  const find = (plural: string | undefined) => {
    const resource = byPlural.get(plural ?? '');
    return resource?.group === group ? resource : undefined;
  };
  const inNamespace =
    rest[0] === 'namespaces' && rest.length > 2 ? find(rest[2])?.namespaced === true : false;
  if (inNamespace) {
    return {
      resource: find(rest[2])!,
      namespace: rest[1],
      name: rest[3],
      subresource: rest.slice(4).join('/') || undefined,
    };
  }
  const resource = find(rest[0]);
  if (resource === undefined || (resource.namespaced && rest.length > 1)) return undefined;
  return { resource, namespace: undefined, name: rest[1], subresource: rest.slice(2).join('/') || undefined };
}
