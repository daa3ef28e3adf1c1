/** Decoding: a body's fields have the kinds that their types say, null is the same as absent. */
import type { ResourceName, StatusError } from './status.ts';
import { badRequest } from './status.ts';

type Check = (value: unknown, at: string) => void;

const wrong = (at: string, expected: string): StatusError =>
  badRequest(`json: cannot unmarshal into field ${at}, which is ${expected}`);

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const text: Check = (value, at) => {
  if (typeof value !== 'string') throw wrong(at, 'a string');
};
const number: Check = (value, at) => {
  if (!Number.isSafeInteger(value)) throw wrong(at, 'an integer');
};
const quantity: Check = (value, at) => {
  if (typeof value !== 'string' && typeof value !== 'number') throw wrong(at, 'a quantity');
};
const mapOf =
  (check: Check): Check =>
  (value, at) => {
    if (!isMap(value)) throw wrong(at, 'an object');
    for (const [key, member] of Object.entries(value)) check(member, `${at}.${key}`);
  };
const listOf =
  (check: Check): Check =>
  (value, at) => {
    if (!Array.isArray(value)) throw wrong(at, 'a list');
    for (const [index, member] of value.entries()) check(member, `${at}[${index}]`);
  };
/** Fields that are not named may be anything. */
const fields =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value, at) => {
    if (!isMap(value)) throw wrong(at, 'an object');
    for (const [key, check] of Object.entries(checks)) {
      if (Object.hasOwn(value, key)) check(value[key], `${at}.${key}`);
    }
  };
const anything = fields({});

const metadata = fields({
  name: text,
  namespace: text,
  generateName: text,
  uid: text,
  resourceVersion: text,
  labels: mapOf(text),
  annotations: mapOf(text),
  finalizers: listOf(text),
  ownerReferences: listOf(fields({ uid: text })),
});
const fieldItem = fields({ fieldRef: anything, resourceFieldRef: anything });
const probe = fields({ httpGet: anything });
const container = fields({
  name: text,
  image: text,
  imagePullPolicy: text,
  ports: listOf(fields({ containerPort: number, hostPort: number, protocol: text })),
  env: listOf(fields({ name: text, value: text, valueFrom: fieldItem })),
  volumeMounts: listOf(fields({ name: text, mountPath: text })),
  resources: fields({ limits: mapOf(quantity), requests: mapOf(quantity) }),
  livenessProbe: probe,
  readinessProbe: probe,
  startupProbe: probe,
});
const items = fields({ items: listOf(fieldItem) });
const volume = fields({
  name: text,
  secret: anything,
  configMap: anything,
  hostPath: anything,
  downwardAPI: items,
  projected: fields({ sources: listOf(fields({ serviceAccountToken: anything, downwardAPI: items })) }),
});
const podSpec = fields({
  containers: listOf(container),
  initContainers: listOf(container),
  volumes: listOf(volume),
  nodeName: text,
  serviceAccountName: text,
  serviceAccount: text,
  restartPolicy: text,
  terminationGracePeriodSeconds: number,
});
const object = fields({
  metadata,
  spec: anything,
  status: anything,
  data: anything,
  involvedObject: anything,
});
const pod = fields({ spec: podSpec, status: fields({ phase: text, conditions: listOf(anything) }) });

/** `body` without nulls. Throws 400 where a field that matters here is of the wrong kind. */
export function decode<T>(resource: ResourceName, body: T): T {
  const decoded = withoutNulls(body);
  object(decoded, resource.kind);
  if (resource.kind === 'Pod') pod(decoded, resource.kind);
  return decoded as T;
}

/** A subresource's body, such as a Binding, of which some members are objects. */
export function decodeMembers<T>(body: T, members: readonly string[]): T {
  const decoded = withoutNulls(body);
  fields(Object.fromEntries(members.map((name) => [name, anything])))(decoded, 'body');
  return decoded as T;
}

function withoutNulls(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutNulls);
  if (!isMap(value)) return value;
  const kept = Object.entries(value).filter(([, member]) => member !== null && member !== undefined);
  return Object.fromEntries(kept.map(([key, member]) => [key, withoutNulls(member)]));
}
