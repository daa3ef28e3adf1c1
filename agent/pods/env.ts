/**
 * The environment of a container, and `$(VAR)` in its command. Pure: whoever calls has fetched what is referred to.
 * The rules are those of kubelet's makeEnvironmentVariables.
 */
import type { KeyValue } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { ConfigMap, Pod, PodContainer, Secret, Service } from '../apiserver/types.ts';
import { type PodFacts, podField, resourceField } from './downward.ts';

export interface Reference {
  readonly kind: 'configmaps' | 'secrets';
  readonly name: string;
  /** Nobody needs it: every place that refers to it is optional. */
  readonly optional: boolean;
}

/** Keys of `EnvOptions.values`. */
export function valueKey(kind: Reference['kind'], name: string): string {
  return `${kind}/${name}`;
}

export interface EnvOptions extends PodFacts {
  readonly pod: Pod;
  readonly container: PodContainer;
  /** What `referencesOf` named, by `valueKey`; what does not exist is absent. */
  readonly values: ReadonlyMap<string, ConfigMap | Secret>;
  /** What `fileKeyRef`s gave, by the reference itself; what is optional and not there is absent. Default: none. */
  readonly fileValues?: ReadonlyMap<object, string>;
  /** Services of the pod's namespace and `default/kubernetes`. */
  readonly services: readonly Service[];
  /** The node's allocatable resources, as quantities. */
  readonly allocatable: Readonly<Record<string, string>>;
}

function invalid(message: string, hint?: string): KeelsonError {
  return new KeelsonError('CONTAINER_CONFIG_INVALID', message, { hint });
}

/** The ConfigMaps and Secrets that the environment of `container` (default: of every container) refers to. */
export function referencesOf(pod: Pod, container?: PodContainer): readonly Reference[] {
  const found = new Map<string, Reference>();
  const add = (
    kind: Reference['kind'],
    ref: { readonly name?: string; readonly optional?: boolean } | undefined,
  ) => {
    if (!ref?.name) return;
    const key = valueKey(kind, ref.name);
    const optional = (ref.optional ?? false) && (found.get(key)?.optional ?? true);
    found.set(key, { kind, name: ref.name, optional });
  };
  const all = [...(pod.spec?.initContainers ?? []), ...(pod.spec?.containers ?? [])];
  for (const each of container === undefined ? all : [container]) {
    for (const from of each.envFrom ?? []) {
      add('configmaps', from.configMapRef);
      add('secrets', from.secretRef);
    }
    for (const { value, valueFrom } of each.env ?? []) {
      if (value) continue;
      add('configmaps', valueFrom?.configMapKeyRef);
      add('secrets', valueFrom?.secretKeyRef);
    }
  }
  return [...found.values()];
}

/**
 * The variables: envFrom, then env over it, in the order of the specification; then the services' ones that nobody
 * has set. Throws CONTAINER_CONFIG_INVALID with kubelet's words.
 */
export function makeEnv(options: EnvOptions): KeyValue[] {
  const { pod, container } = options;
  const serviceEnv = serviceVariables(
    options.services,
    pod.metadata?.namespace ?? 'default',
    pod.spec?.enableServiceLinks !== false,
  );
  const env = new Map<string, string>();
  for (const from of container.envFrom ?? []) {
    const ref = from.configMapRef ?? from.secretRef;
    if (!ref) continue;
    const data = lookUp(options, from.configMapRef ? 'configmaps' : 'secrets', ref);
    for (const [key, value] of data ?? []) env.set(`${from.prefix ?? ''}${key}`, value());
  }
  for (const { name, value, valueFrom } of container.env ?? []) {
    const text = value
      ? expand(value, (other) => env.get(other) ?? serviceEnv.get(other))
      : valueFrom
        ? sourced(options, valueFrom)
        : '';
    if (text !== undefined) env.set(name, text);
  }
  for (const [name, value] of env) {
    if (value.includes('\0') || name.includes('\0')) {
      throw invalid(
        `environment variable ${name.replaceAll('\0', '')} of container ${container.name} contains a NUL byte`,
      );
    }
  }
  for (const [name, value] of serviceEnv) if (!env.has(name)) env.set(name, value);
  return Array.from(env, ([key, value]) => ({ key, value }));
}

/** Command and arguments with `$(VAR)` replaced by the variables of `env`. */
export function expandCommand(
  container: Pick<PodContainer, 'command' | 'args'>,
  env: readonly KeyValue[],
): { command: string[]; args: string[] } {
  const values = new Map(env.map(({ key, value }) => [key, value]));
  const all = (texts: readonly string[] | undefined) =>
    (texts ?? []).map((text) => expand(text, (name) => values.get(name)));
  return { command: all(container.command), args: all(container.args) };
}

/**
 * Replaces `$(NAME)` by what `lookup` says; `$$` is `$`, and what is not known or not a reference stays as it is
 * (Kubernetes' third_party/forked/golang/expansion).
 */
export function expand(text: string, lookup: (name: string) => string | undefined): string {
  return text.replace(/\$\$|\$\(([^)]*)\)/g, (whole, name: string | undefined) =>
    name === undefined ? '$' : (lookup(name) ?? whole),
  );
}

type Source = NonNullable<NonNullable<PodContainer['env']>[number]['valueFrom']>;

/** The value, or undefined where it is optional and not there. */
function sourced(options: EnvOptions, from: Source): string | undefined {
  const { pod, container } = options;
  if (from.fieldRef) return podField(pod, from.fieldRef.fieldPath, options);
  if (from.resourceFieldRef) {
    return resourceField(pod, container, from.resourceFieldRef, options.allocatable);
  }
  const file = (from as { fileKeyRef?: object }).fileKeyRef;
  if (file) return options.fileValues?.get(file);
  const ref = from.configMapKeyRef ?? from.secretKeyRef;
  if (!ref) {
    throw invalid(
      `container ${container.name} takes a variable from ${Object.keys(from).join(', ') || 'nowhere'}, which is not supported`,
    );
  }
  const kind = from.configMapKeyRef ? 'configmaps' : 'secrets';
  const data = lookUp(options, kind, ref);
  if (data === undefined) return undefined;
  const value = data.get(ref.key);
  if (value !== undefined) return value();
  if (ref.optional) return undefined;
  const noun = kind === 'configmaps' ? 'ConfigMap' : 'Secret';
  throw invalid(
    `couldn't find key ${ref.key} in ${noun} ${pod.metadata?.namespace ?? 'default'}/${ref.name}`,
  );
}

/** The entries of a ConfigMap or Secret, decoded when asked; undefined where it is optional and absent. */
function lookUp(
  options: EnvOptions,
  kind: Reference['kind'],
  ref: { readonly name?: string; readonly optional?: boolean },
): ReadonlyMap<string, () => string> | undefined {
  const name = ref.name ?? '';
  const found = options.values.get(valueKey(kind, name));
  if (found === undefined) {
    if (ref.optional) return undefined;
    const noun = kind === 'configmaps' ? 'configmap' : 'secret';
    throw invalid(
      `${noun} "${name}" not found`,
      `create it in namespace ${options.pod.metadata?.namespace ?? 'default'}`,
    );
  }
  const decode = kind === 'configmaps' ? (text: string) => text : decodeBase64;
  return new Map(Object.entries(found.data ?? {}).map(([key, value]) => [key, () => decode(value)] as const));
}

function decodeBase64(text: string): string {
  return Buffer.from(text, 'base64').toString('utf8');
}

/** Host, port and docker-link variables of the services that a pod sees (kubelet's envvars.FromServices). */
function serviceVariables(
  services: readonly Service[],
  namespace: string,
  links: boolean,
): ReadonlyMap<string, string> {
  const seen = new Map<string, Service>();
  for (const service of services) {
    const name = service.metadata?.name ?? '';
    const clusterIP = service.spec?.clusterIP;
    if (!clusterIP || clusterIP === 'None') continue;
    if (links && service.metadata?.namespace === namespace) seen.set(name, service);
    else if (service.metadata?.namespace === 'default' && name === 'kubernetes' && !seen.has(name)) {
      seen.set(name, service);
    }
  }
  const variables = new Map<string, string>();
  for (const [name, { spec }] of seen) {
    const prefix = variableName(name);
    const host = spec!.clusterIP!;
    const ports = spec!.ports ?? [];
    variables.set(`${prefix}_SERVICE_HOST`, host);
    if (ports[0] !== undefined) variables.set(`${prefix}_SERVICE_PORT`, String(ports[0].port));
    for (const port of ports) {
      if (port.name) variables.set(`${prefix}_SERVICE_PORT_${variableName(port.name)}`, String(port.port));
    }
    ports.forEach((port, index) => {
      const protocol = port.protocol ?? 'TCP';
      const lower = protocol.toLowerCase();
      const url = `${lower}://${host.includes(':') ? `[${host}]` : host}:${port.port}`;
      const link = `${prefix}_PORT_${port.port}_${protocol.toUpperCase()}`;
      if (index === 0) variables.set(`${prefix}_PORT`, url);
      variables.set(link, url);
      variables.set(`${link}_PROTO`, lower);
      variables.set(`${link}_PORT`, String(port.port));
      variables.set(`${link}_ADDR`, host);
    });
  }
  return variables;
}

function variableName(name: string): string {
  return name.replaceAll('-', '_').toUpperCase();
}
