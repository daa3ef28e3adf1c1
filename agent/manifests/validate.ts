/** What a pod must be for keelson to run it (after k8s.io/kubernetes, core/validation). Pure. */
import { isIP } from 'node:net';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { isQuantity } from '../apiserver/quantity.ts';
import type { Pod, PodContainer, PodSpec, Volume } from '../apiserver/types.ts';
import { podShape, shapeFaults } from './shape.ts';

const label = /^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/;
const subdomain = /^(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;

/** The first faults as one POD_INVALID with `details.fields`, or undefined where the pod is right. */
export function validatePod(pod: Pod): KeelsonError | undefined {
  const faults = shapeFaults(pod, podShape);
  if (faults.length === 0) checkPod(pod, (path, message) => faults.push(`${path}: ${message}`));
  if (faults.length === 0) return undefined;
  const shown = faults.slice(0, 10).join('; ');
  return new KeelsonError(
    'POD_INVALID',
    `invalid pod: ${shown}${faults.length > 10 ? `; and ${faults.length - 10} more` : ''}`,
    { details: { fields: faults.map((fault) => fault.slice(0, fault.indexOf(': '))) } },
  );
}

type Complain = (path: string, message: string) => void;

function checkPod(pod: Pod, complain: Complain): void {
  const must = (holds: boolean, path: string, message: string) => {
    if (!holds) complain(path, message);
  };
  const { metadata, spec } = pod;
  must(subdomain.test(metadata?.name ?? ''), 'metadata.name', 'must be a lower-case RFC 1123 subdomain');
  must(
    !metadata?.namespace || label.test(metadata.namespace),
    'metadata.namespace',
    'must be a lower-case RFC 1123 label',
  );
  must(
    !metadata?.uid || /^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$/.test(metadata.uid),
    'metadata.uid',
    'must be a name',
  );
  if (!spec) {
    complain('spec', 'is required');
    return;
  }
  const oneOf = (value: string | undefined, path: string, ...known: string[]) =>
    must(!value || known.includes(value), path, `must be one of ${known.join(', ')}`);
  oneOf(spec.restartPolicy, 'spec.restartPolicy', 'Always', 'OnFailure', 'Never');
  oneOf(spec.dnsPolicy, 'spec.dnsPolicy', 'ClusterFirst', 'ClusterFirstWithHostNet', 'Default', 'None');
  must(
    spec.dnsPolicy !== 'None' || (spec.dnsConfig?.nameservers ?? []).length > 0,
    'spec.dnsConfig.nameservers',
    'must have at least one server where dnsPolicy is None',
  );
  must(
    (spec.terminationGracePeriodSeconds ?? 0) >= 0,
    'spec.terminationGracePeriodSeconds',
    'must not be negative',
  );
  must((spec.activeDeadlineSeconds ?? 1) > 0, 'spec.activeDeadlineSeconds', 'must be positive');
  must(!spec.hostname || label.test(spec.hostname), 'spec.hostname', 'must be a lower-case RFC 1123 label');
  must((spec.containers ?? []).length > 0, 'spec.containers', 'must have at least one container');
  const volumes = checkVolumes(spec.volumes ?? [], must);
  checkContainers(spec, volumes, must, oneOf);
}

type Must = (holds: boolean, path: string, message: string) => void;

/** Returns their names. */
function checkVolumes(volumes: readonly Volume[], must: Must): ReadonlySet<string> {
  const names = new Set<string>();
  volumes.forEach((volume, index) => {
    const path = `spec.volumes[${index}]`;
    must(label.test(volume.name ?? ''), `${path}.name`, 'must be a lower-case RFC 1123 label');
    must(!names.has(volume.name), `${path}.name`, `${volume.name} is there twice`);
    names.add(volume.name);
    const kinds = Object.entries(volume).filter(([key, value]) => key !== 'name' && value);
    must(kinds.length <= 1, path, `has more than one type: ${kinds.map(([key]) => key).join(', ')}`);
    if (volume.hostPath) {
      must(Boolean(volume.hostPath.path?.startsWith('/')), `${path}.hostPath.path`, 'must be absolute');
    }
    const { sizeLimit } = volume.emptyDir ?? {};
    must(
      sizeLimit === undefined || sizeLimit === null || isQuantity(String(sizeLimit)),
      `${path}.emptyDir.sizeLimit`,
      'must be a quantity such as 64Mi',
    );
  });
  return names;
}

type OneOf = (value: string | undefined, path: string, ...known: string[]) => void;

function checkContainers(spec: PodSpec, volumes: ReadonlySet<string>, must: Must, oneOf: OneOf): void {
  const names = new Set<string>();
  const hostPorts = new Set<string>();
  for (const [kind, list] of [
    ['initContainers', spec.initContainers ?? []],
    ['containers', spec.containers ?? []],
  ] as const) {
    list.forEach((container, index) => {
      const path = `spec.${kind}[${index}]`;
      must(label.test(container.name ?? ''), `${path}.name`, 'must be a lower-case RFC 1123 label');
      must(!names.has(container.name), `${path}.name`, `${container.name} is there twice`);
      names.add(container.name);
      const image = container.image ?? '';
      must(image !== '', `${path}.image`, 'is required');
      must(image === image.trim(), `${path}.image`, 'must not start or end with white space');
      oneOf(container.imagePullPolicy, `${path}.imagePullPolicy`, 'Always', 'IfNotPresent', 'Never');
      oneOf(
        container.terminationMessagePolicy,
        `${path}.terminationMessagePolicy`,
        'File',
        'FallbackToLogsOnError',
      );
      checkPorts(container, path, kind === 'containers' ? hostPorts : new Set(), must, oneOf);
      checkMounts(container, path, volumes, must);
      checkResources(container, path, must);
      checkHandlers(container, path, must);
      (container.env ?? []).forEach(({ name, value, valueFrom }, at) => {
        must(
          /^[\x20-\x3c\x3e-\x7e]+$/.test(name ?? ''),
          `${path}.env[${at}].name`,
          'must be printable ASCII without =',
        );
        must(!(value && valueFrom), `${path}.env[${at}]`, 'must not have both value and valueFrom');
      });
    });
  }
}

function checkPorts(
  container: PodContainer,
  path: string,
  hostPorts: Set<string>,
  must: Must,
  oneOf: OneOf,
): void {
  const isPort = (port: number) => port >= 1 && port <= 65535;
  const names = new Set<string>();
  (container.ports ?? []).forEach((port, index) => {
    const at = `${path}.ports[${index}]`;
    must(isPort(port.containerPort ?? 0), `${at}.containerPort`, 'must be from 1 to 65535');
    must(!port.hostPort || isPort(port.hostPort), `${at}.hostPort`, 'must be from 1 to 65535');
    must(!port.hostIP || isIP(port.hostIP) !== 0, `${at}.hostIP`, 'must be an IP address');
    oneOf(port.protocol, `${at}.protocol`, 'TCP', 'UDP', 'SCTP');
    if (port.name) {
      must(
        /^(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*$/.test(port.name) && port.name.length <= 15,
        `${at}.name`,
        'must be an IANA service name',
      );
      must(!names.has(port.name), `${at}.name`, `${port.name} is there twice`);
      names.add(port.name);
    }
    if (port.hostPort) {
      const key = `${port.protocol ?? 'TCP'} ${port.hostIP ?? ''} ${port.hostPort}`;
      must(!hostPorts.has(key), `${at}.hostPort`, `${port.hostPort} is there twice`);
      hostPorts.add(key);
    }
  });
}

function checkMounts(container: PodContainer, path: string, volumes: ReadonlySet<string>, must: Must): void {
  const places = new Set<string>();
  (container.volumeMounts ?? []).forEach((mount, index) => {
    const at = `${path}.volumeMounts[${index}]`;
    must(volumes.has(mount.name), `${at}.name`, `there is no volume ${mount.name}`);
    must(Boolean(mount.mountPath), `${at}.mountPath`, 'is required');
    must(!places.has(mount.mountPath), `${at}.mountPath`, `${mount.mountPath} is there twice`);
    places.add(mount.mountPath);
    must(!(mount.subPath && mount.subPathExpr), at, 'must not have both subPath and subPathExpr');
    for (const name of ['subPath', 'subPathExpr'] as const) {
      const value = mount[name] ?? '';
      must(
        !value.startsWith('/') && !value.split('/').includes('..'),
        `${at}.${name}`,
        "must be relative and not contain '..'",
      );
    }
  });
}

function checkResources(container: PodContainer, path: string, must: Must): void {
  for (const kind of ['limits', 'requests'] as const) {
    for (const [name, value] of Object.entries(container.resources?.[kind] ?? {})) {
      must(
        isQuantity(String(value)),
        `${path}.resources.${kind}.${name}`,
        'must be a quantity such as 500m or 64Mi',
      );
    }
  }
}

function checkHandlers(container: PodContainer, path: string, must: Must): void {
  const kinds = ['exec', 'httpGet', 'tcpSocket', 'grpc', 'sleep'];
  const check = (handler: object | undefined | null, at: string) => {
    if (!handler) return;
    const given = Object.entries(handler).filter(([key, value]) => kinds.includes(key) && value);
    must(given.length === 1, at, `must have exactly one of ${kinds.join(', ')}`);
  };
  check(container.livenessProbe, `${path}.livenessProbe`);
  check(container.readinessProbe, `${path}.readinessProbe`);
  check(container.startupProbe, `${path}.startupProbe`);
  check(container.lifecycle?.postStart, `${path}.lifecycle.postStart`);
  check(container.lifecycle?.preStop, `${path}.lifecycle.preStop`);
}

/** Why a pod from a file cannot run: it refers to what only an apiserver has. undefined where it does not. */
export function apiReference(pod: Pod): string | undefined {
  const spec = pod.spec;
  const all = [...(spec?.initContainers ?? []), ...(spec?.containers ?? [])];
  const refers = (from: object | undefined, ...keys: string[]) =>
    Object.entries(from ?? {}).some(([key, value]) => keys.includes(key) && value);
  const env = all.flatMap((container) => [
    ...(container.envFrom ?? []),
    ...(container.env ?? []).map(({ valueFrom }) => valueFrom ?? {}),
  ]);
  const volumes: object[] = (spec?.volumes ?? []).flatMap((volume) => [
    volume,
    ...(volume.projected?.sources ?? []),
  ]);
  if (spec?.serviceAccountName || volumes.some((from) => refers(from, 'serviceAccountToken'))) {
    return 'serviceaccounts';
  }
  if ((spec?.imagePullSecrets ?? []).length > 0) return 'secrets';
  if (env.some((from) => refers(from, 'secretRef', 'secretKeyRef'))) return 'secrets';
  if (volumes.some((from) => refers(from, 'secret'))) return 'secrets';
  if (env.some((from) => refers(from, 'configMapRef', 'configMapKeyRef'))) return 'configmaps';
  if (volumes.some((from) => refers(from, 'configMap'))) return 'configmaps';
  if (volumes.some((from) => refers(from, 'persistentVolumeClaim', 'ephemeral'))) {
    return 'persistentvolumeclaims';
  }
  return volumes.some((from) => refers(from, 'clusterTrustBundle')) ? 'clustertrustbundles' : undefined;
}
