/** The essentials of what a real apiserver refuses; only what clients of the node's kind may run into. */
import { isDeepStrictEqual } from 'node:util';
import type { Container, Event, Pod } from 'kubernetes-types/core/v1.js';
import type { Resource, StoredObject } from './resources.ts';
import type { FieldError } from './status.ts';

const label = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/;
const subdomain = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;
const qualifiedName = /^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$/;

const subdomainRule =
  "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const labelRule =
  "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

const required = (field: string, why = ''): FieldError => ({
  field,
  reason: 'FieldValueRequired',
  message: `Required value${why === '' ? '' : `: ${why}`}`,
});
const wrong = (field: string, value: unknown, why: string): FieldError => ({
  field,
  reason: 'FieldValueInvalid',
  message: `Invalid value: ${JSON.stringify(value)}: ${why}`,
});
const duplicate = (field: string, value: unknown): FieldError => ({
  field,
  reason: 'FieldValueDuplicate',
  message: `Duplicate value: ${JSON.stringify(value)}`,
});
const unknown = (field: string, value: unknown): FieldError => ({
  field,
  reason: 'FieldValueNotFound',
  message: `Not found: ${JSON.stringify(value)}`,
});
const unsupported = (field: string, value: unknown, supported: readonly string[]): FieldError => ({
  field,
  reason: 'FieldValueNotSupported',
  message: `Unsupported value: ${JSON.stringify(value)}: supported values: ${supported.map((item) => JSON.stringify(item)).join(', ')}`,
});
const refused = (field: string, why: string): FieldError => ({
  field,
  reason: 'FieldValueForbidden',
  message: `Forbidden: ${why}`,
});

/** What is wrong with a new object. */
export function validateNew(resource: Resource, object: StoredObject): FieldError[] {
  return [
    ...validateMetadata(resource, object),
    ...(resource.kind === 'Pod' ? validatePod(object as Pod) : []),
    ...(resource.kind === 'Event' ? validateEvent(object as unknown as Event) : []),
    ...(resource.kind === 'ConfigMap' || resource.kind === 'Secret' ? validateKeys(object) : []),
  ];
}

/** What is wrong with replacing `before` by `after`. */
export function validateUpdate(resource: Resource, before: StoredObject, after: StoredObject): FieldError[] {
  if (resource.kind === 'Pod') {
    const errors = validatePod(after as Pod);
    if (errors.length > 0) return errors;
    const fixed = (object: StoredObject) => fixedPartOf((object as Pod).spec!);
    if (!isDeepStrictEqual(fixed(before), fixed(after))) {
      return [
        refused(
          'spec',
          'pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)',
        ),
      ];
    }
  }
  const immutable = before['immutable'] === true;
  if (
    immutable &&
    !isDeepStrictEqual([before['data'], before['binaryData']], [after['data'], after['binaryData']])
  ) {
    return [refused('data', 'field is immutable when `immutable` is set')];
  }
  return validateMetadata(resource, after);
}

function fixedPartOf(spec: NonNullable<Pod['spec']>): object {
  const without = (containers: Container[] | undefined) => containers?.map(({ image: _, ...rest }) => rest);
  const { containers, initContainers, activeDeadlineSeconds: _, tolerations: __, ...rest } = spec;
  return { ...rest, containers: without(containers), initContainers: without(initContainers) };
}

function validateMetadata(resource: Resource, { metadata }: StoredObject): FieldError[] {
  const errors: FieldError[] = [];
  const name = metadata.name ?? '';
  if (name === '') errors.push(required('metadata.name', 'name or generateName is required'));
  else if (
    resource.kind === 'Namespace'
      ? !label.test(name) || name.length > 63
      : !subdomain.test(name) || name.length > 253
  ) {
    errors.push(wrong('metadata.name', name, resource.kind === 'Namespace' ? labelRule : subdomainRule));
  }
  for (const [key, value] of Object.entries(metadata.labels ?? {})) {
    const [last, prefix] = key.split('/').reverse();
    if (
      !qualifiedName.test(last!) ||
      last!.length > 63 ||
      (prefix !== undefined && !subdomain.test(prefix))
    ) {
      errors.push(wrong('metadata.labels', key, 'name part must consist of alphanumeric characters'));
    }
    if (value !== '' && (!qualifiedName.test(value) || value.length > 63)) {
      errors.push(
        wrong(
          'metadata.labels',
          value,
          'a valid label must be an empty string or consist of alphanumeric characters',
        ),
      );
    }
  }
  return errors;
}

function validateKeys(object: StoredObject): FieldError[] {
  return Object.keys((object['data'] as object | undefined) ?? {})
    .filter((key) => !/^[-._a-zA-Z0-9]+$/.test(key))
    .map((key) =>
      wrong(
        `data[${key}]`,
        key,
        "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
      ),
    );
}

function validateEvent(event: Event): FieldError[] {
  const about = event.involvedObject?.namespace ?? '';
  const namespace = event.metadata.namespace;
  // Events of objects without a namespace live in default.
  return about === namespace || (about === '' && namespace === 'default')
    ? []
    : [wrong('involvedObject.namespace', about, 'does not match event.namespace')];
}

function validatePod(pod: Pod): FieldError[] {
  const spec = pod.spec;
  if (spec === undefined) return [required('spec.containers')];
  const errors: FieldError[] = [];
  const volumes = new Set<string>();
  for (const [index, volume] of (spec.volumes ?? []).entries()) {
    const at = `spec.volumes[${index}]`;
    if (!volume.name) errors.push(required(`${at}.name`));
    else if (!label.test(volume.name)) errors.push(wrong(`${at}.name`, volume.name, labelRule));
    else if (volumes.has(volume.name)) errors.push(duplicate(`${at}.name`, volume.name));
    volumes.add(volume.name);
    const sources = Object.keys(volume).filter((key) => key !== 'name');
    for (const extra of sources.slice(1)) {
      errors.push(refused(`${at}.${extra}`, 'may not specify more than 1 volume type'));
    }
  }
  if (!Array.isArray(spec.containers) || spec.containers.length === 0)
    errors.push(required('spec.containers'));
  const names = new Set<string>();
  const check = (list: 'containers' | 'initContainers') => {
    for (const [index, container] of (spec[list] ?? []).entries()) {
      errors.push(...validateContainer(container, `spec.${list}[${index}]`, volumes, names));
    }
  };
  check('initContainers');
  check('containers');
  const policies = ['Always', 'OnFailure', 'Never'];
  if (spec.restartPolicy !== undefined && !policies.includes(spec.restartPolicy)) {
    errors.push(unsupported('spec.restartPolicy', spec.restartPolicy, policies));
  }
  const grace = spec.terminationGracePeriodSeconds;
  if (grace !== undefined && grace < 0) {
    errors.push(wrong('spec.terminationGracePeriodSeconds', grace, 'must be greater than or equal to 0'));
  }
  return errors;
}

function validateContainer(
  container: Container,
  at: string,
  volumes: Set<string>,
  names: Set<string>,
): FieldError[] {
  const errors: FieldError[] = [];
  if (!container.name) errors.push(required(`${at}.name`));
  else if (!label.test(container.name) || container.name.length > 63) {
    errors.push(wrong(`${at}.name`, container.name, labelRule));
  } else if (names.has(container.name)) errors.push(duplicate(`${at}.name`, container.name));
  names.add(container.name);
  if (!container.image) errors.push(required(`${at}.image`));
  else if (container.image !== container.image.trim()) {
    errors.push(wrong(`${at}.image`, container.image, 'must not have leading or trailing whitespace'));
  }
  const policies = ['Always', 'IfNotPresent', 'Never'];
  if (container.imagePullPolicy !== undefined && !policies.includes(container.imagePullPolicy)) {
    errors.push(unsupported(`${at}.imagePullPolicy`, container.imagePullPolicy, policies));
  }
  for (const [index, port] of (container.ports ?? []).entries()) {
    for (const field of ['containerPort', 'hostPort'] as const) {
      const value = port[field];
      if (field === 'hostPort' && value === undefined) continue;
      if (!value) errors.push(required(`${at}.ports[${index}].${field}`));
      else if (value > 65535 || value < 1) {
        errors.push(wrong(`${at}.ports[${index}].${field}`, value, 'must be between 1 and 65535, inclusive'));
      }
    }
  }
  const paths = new Set<string>();
  for (const [index, mount] of (container.volumeMounts ?? []).entries()) {
    const where = `${at}.volumeMounts[${index}]`;
    if (!mount.name) errors.push(required(`${where}.name`));
    else if (!volumes.has(mount.name)) errors.push(unknown(`${where}.name`, mount.name));
    if (!mount.mountPath) errors.push(required(`${where}.mountPath`));
    else if (paths.has(mount.mountPath))
      errors.push(wrong(`${where}.mountPath`, mount.mountPath, 'must be unique'));
    paths.add(mount.mountPath);
  }
  for (const [index, variable] of (container.env ?? []).entries()) {
    if (!variable.name) errors.push(required(`${at}.env[${index}].name`));
    if (variable.value && variable.valueFrom) {
      errors.push(
        wrong(`${at}.env[${index}].valueFrom`, '', 'may not be specified when `value` is not empty'),
      );
    }
  }
  return errors;
}
