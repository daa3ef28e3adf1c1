/** The types of the fields of a pod that keelson reads: what a file says may be anything. Pure. */

export type Shape =
  | 'string'
  | 'boolean'
  | 'integer'
  /** An integer or a name: `IntOrString`. */
  | 'port'
  /** A string; a bare number is taken too: `resource.Quantity`. */
  | 'quantity'
  | readonly [Shape]
  | { readonly map: Shape }
  | { readonly fields: Readonly<Record<string, Shape>> };

const texts: Shape = ['string'];
const textMap: Shape = { map: 'string' };
const quantities: Shape = { map: 'quantity' };
const of = (fields: Readonly<Record<string, Shape>>): Shape => ({ fields });

const items: Shape = [of({ key: 'string', path: 'string', mode: 'integer' })];
const fieldRef = of({ apiVersion: 'string', fieldPath: 'string' });
const resourceFieldRef = of({ containerName: 'string', resource: 'string', divisor: 'quantity' });
const keyRef = of({ name: 'string', key: 'string', optional: 'boolean' });
const reference = of({ name: 'string', optional: 'boolean' });
const downwardItems: Shape = [of({ path: 'string', mode: 'integer', fieldRef, resourceFieldRef })];

const handler: Readonly<Record<string, Shape>> = {
  exec: of({ command: texts }),
  httpGet: of({
    path: 'string',
    port: 'port',
    host: 'string',
    scheme: 'string',
    httpHeaders: [of({ name: 'string', value: 'string' })],
  }),
  tcpSocket: of({ port: 'port', host: 'string' }),
  grpc: of({ port: 'integer', service: 'string' }),
  sleep: of({ seconds: 'integer' }),
};
const probe = of({
  ...handler,
  initialDelaySeconds: 'integer',
  timeoutSeconds: 'integer',
  periodSeconds: 'integer',
  successThreshold: 'integer',
  failureThreshold: 'integer',
  terminationGracePeriodSeconds: 'integer',
});
const userFields: Readonly<Record<string, Shape>> = {
  runAsUser: 'integer',
  runAsGroup: 'integer',
  runAsNonRoot: 'boolean',
  seLinuxOptions: textMap,
  seccompProfile: of({ type: 'string', localhostProfile: 'string' }),
  appArmorProfile: of({ type: 'string', localhostProfile: 'string' }),
};

const container = of({
  name: 'string',
  image: 'string',
  command: texts,
  args: texts,
  workingDir: 'string',
  restartPolicy: 'string',
  imagePullPolicy: 'string',
  terminationMessagePath: 'string',
  terminationMessagePolicy: 'string',
  stdin: 'boolean',
  stdinOnce: 'boolean',
  tty: 'boolean',
  ports: [
    of({
      name: 'string',
      containerPort: 'integer',
      hostPort: 'integer',
      hostIP: 'string',
      protocol: 'string',
    }),
  ],
  env: [
    of({
      name: 'string',
      value: 'string',
      valueFrom: of({ fieldRef, resourceFieldRef, configMapKeyRef: keyRef, secretKeyRef: keyRef }),
    }),
  ],
  envFrom: [of({ prefix: 'string', configMapRef: reference, secretRef: reference })],
  resources: of({ limits: quantities, requests: quantities }),
  volumeMounts: [
    of({
      name: 'string',
      mountPath: 'string',
      subPath: 'string',
      subPathExpr: 'string',
      readOnly: 'boolean',
      mountPropagation: 'string',
      recursiveReadOnly: 'string',
    }),
  ],
  volumeDevices: [of({ name: 'string', devicePath: 'string' })],
  livenessProbe: probe,
  readinessProbe: probe,
  startupProbe: probe,
  lifecycle: of({ postStart: of(handler), preStop: of(handler), stopSignal: 'string' }),
  securityContext: of({
    ...userFields,
    privileged: 'boolean',
    allowPrivilegeEscalation: 'boolean',
    readOnlyRootFilesystem: 'boolean',
    procMount: 'string',
    capabilities: of({ add: texts, drop: texts }),
  }),
});

const volume = of({
  name: 'string',
  emptyDir: of({ medium: 'string', sizeLimit: 'quantity' }),
  hostPath: of({ path: 'string', type: 'string' }),
  configMap: of({ name: 'string', items, defaultMode: 'integer', optional: 'boolean' }),
  secret: of({ secretName: 'string', items, defaultMode: 'integer', optional: 'boolean' }),
  downwardAPI: of({ items: downwardItems, defaultMode: 'integer' }),
  projected: of({
    defaultMode: 'integer',
    sources: [
      of({
        configMap: of({ name: 'string', items, optional: 'boolean' }),
        secret: of({ name: 'string', items, optional: 'boolean' }),
        downwardAPI: of({ items: downwardItems }),
        serviceAccountToken: of({ audience: 'string', expirationSeconds: 'integer', path: 'string' }),
      }),
    ],
  }),
});

/** v1.Pod, as far as keelson looks into it. */
export const podShape: Shape = of({
  apiVersion: 'string',
  kind: 'string',
  metadata: of({
    name: 'string',
    namespace: 'string',
    uid: 'string',
    labels: textMap,
    annotations: textMap,
  }),
  spec: of({
    containers: [container],
    initContainers: [container],
    volumes: [volume],
    restartPolicy: 'string',
    terminationGracePeriodSeconds: 'integer',
    activeDeadlineSeconds: 'integer',
    dnsPolicy: 'string',
    dnsConfig: of({
      nameservers: texts,
      searches: texts,
      options: [of({ name: 'string', value: 'string' })],
    }),
    nodeName: 'string',
    nodeSelector: textMap,
    hostNetwork: 'boolean',
    hostPID: 'boolean',
    hostIPC: 'boolean',
    hostUsers: 'boolean',
    shareProcessNamespace: 'boolean',
    hostname: 'string',
    subdomain: 'string',
    setHostnameAsFQDN: 'boolean',
    hostAliases: [of({ ip: 'string', hostnames: texts })],
    serviceAccountName: 'string',
    automountServiceAccountToken: 'boolean',
    enableServiceLinks: 'boolean',
    imagePullSecrets: [of({ name: 'string' })],
    priority: 'integer',
    priorityClassName: 'string',
    runtimeClassName: 'string',
    schedulerName: 'string',
    overhead: quantities,
    readinessGates: [of({ conditionType: 'string' })],
    tolerations: [
      of({
        key: 'string',
        operator: 'string',
        value: 'string',
        effect: 'string',
        tolerationSeconds: 'integer',
      }),
    ],
    securityContext: of({
      ...userFields,
      fsGroup: 'integer',
      fsGroupChangePolicy: 'string',
      supplementalGroups: ['integer'],
      supplementalGroupsPolicy: 'string',
      sysctls: [of({ name: 'string', value: 'string' })],
    }),
  }),
});

/** Faults such as `spec.containers[0].image: expected a string, got a number`. `null` is as absent. */
export function shapeFaults(value: unknown, shape: Shape, path = ''): string[] {
  if (value === undefined || value === null) return [];
  const fault = (expected: string) => [
    `${path || 'the document'}: expected ${expected}, got ${nameOf(value)}`,
  ];
  if (shape === 'string') return typeof value === 'string' ? [] : fault('a string');
  if (shape === 'boolean') return typeof value === 'boolean' ? [] : fault('true or false');
  if (shape === 'integer') return Number.isSafeInteger(value) ? [] : fault('an integer');
  if (shape === 'port') return isIntOrString(value) ? [] : fault('a port number or name');
  if (shape === 'quantity')
    return isIntOrString(value) || typeof value === 'number' ? [] : fault('a quantity');
  if (isListShape(shape)) {
    if (!Array.isArray(value)) return fault('a list');
    return value.flatMap((entry: unknown, index) =>
      entry === null
        ? [`${path}[${index}]: must not be empty`]
        : shapeFaults(entry, shape[0], `${path}[${index}]`),
    );
  }
  if (typeof value !== 'object' || Array.isArray(value)) return fault('a map');
  return Object.entries(value).flatMap(([key, entry]: [string, unknown]) => {
    const at = path === '' ? key : `${path}.${key}`;
    if ('map' in shape) return shapeFaults(entry, shape.map, at);
    return Object.hasOwn(shape.fields, key) ? shapeFaults(entry, shape.fields[key]!, at) : [];
  });
}

function isListShape(shape: Shape): shape is readonly [Shape] {
  return Array.isArray(shape);
}

function isIntOrString(value: unknown): boolean {
  return typeof value === 'string' || Number.isSafeInteger(value);
}

function nameOf(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (typeof value === 'object') return 'a map';
  if (typeof value === 'string') return 'a string';
  return `${typeof value === 'number' ? 'the number' : 'the value'} ${String(value)}`;
}
