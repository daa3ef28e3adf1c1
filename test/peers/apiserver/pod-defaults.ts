/** What a real apiserver adds to a pod: the defaults of core/v1, the QoS class, the service account's volume. */
import { randomBytes } from 'node:crypto';
import type { Container, Pod, PodSpec, PodStatus, Probe, Volume } from 'kubernetes-types/core/v1.js';

const accountMount = '/var/run/secrets/kubernetes.io/serviceaccount';

/** Where a static pod is shown at the apiserver; such a pod gets no service account. */
export const isMirrorPod = (pod: Pod) =>
  pod.metadata?.annotations?.['kubernetes.io/config.mirror'] !== undefined;

/** Fills in the spec of `pod`, which has passed validation; changes it. Returns its first status. */
export function defaultPod(pod: Pod, automount: boolean): PodStatus {
  const spec = pod.spec!;
  if (!isMirrorPod(pod)) {
    spec.serviceAccountName ||= spec.serviceAccount || 'default';
    if (spec.automountServiceAccountToken ?? automount) addAccountVolume(spec);
  }
  if (spec.serviceAccountName) spec.serviceAccount = spec.serviceAccountName;
  spec.restartPolicy ??= 'Always';
  spec.dnsPolicy ??= 'ClusterFirst';
  spec.terminationGracePeriodSeconds ??= 30;
  spec.schedulerName ??= 'default-scheduler';
  spec.securityContext ??= {};
  spec.enableServiceLinks ??= true;
  spec.priority ??= 0;
  spec.preemptionPolicy ??= 'PreemptLowerPriority';
  for (const container of allContainers(spec)) defaultContainer(container, spec);
  for (const volume of spec.volumes ?? []) defaultVolume(volume);
  return { phase: 'Pending', qosClass: qosClass(spec) };
}

const allContainers = (spec: PodSpec): Container[] => [...(spec.initContainers ?? []), ...spec.containers];

function defaultContainer(container: Container, spec: PodSpec): void {
  container.terminationMessagePath ??= '/dev/termination-log';
  container.terminationMessagePolicy ??= 'File';
  container.imagePullPolicy ??= alwaysPulled(container.image ?? '') ? 'Always' : 'IfNotPresent';
  container.resources ??= {};
  const { limits } = container.resources;
  if (limits !== undefined) container.resources.requests = { ...limits, ...container.resources.requests };
  for (const port of container.ports ?? []) {
    port.protocol ??= 'TCP';
    if (spec.hostNetwork) port.hostPort ??= port.containerPort;
  }
  for (const { valueFrom } of container.env ?? []) {
    if (valueFrom?.fieldRef) valueFrom.fieldRef.apiVersion ??= 'v1';
    if (valueFrom?.resourceFieldRef) valueFrom.resourceFieldRef.divisor ??= '0';
  }
  for (const probe of [container.livenessProbe, container.readinessProbe, container.startupProbe]) {
    if (probe !== undefined) defaultProbe(probe);
  }
}

function defaultProbe(probe: Probe): void {
  probe.timeoutSeconds ||= 1;
  probe.periodSeconds ||= 10;
  probe.successThreshold ||= 1;
  probe.failureThreshold ||= 3;
  if (probe.httpGet) {
    probe.httpGet.path ??= '/';
    probe.httpGet.scheme ??= 'HTTP';
  }
}

function defaultVolume(volume: Volume): void {
  if (Object.keys(volume).length === 1) volume.emptyDir = {};
  if (volume.secret) volume.secret.defaultMode ??= 0o644;
  if (volume.configMap) volume.configMap.defaultMode ??= 0o644;
  if (volume.hostPath) volume.hostPath.type ??= '';
  const fields = [...(volume.downwardAPI?.items ?? [])];
  if (volume.downwardAPI) volume.downwardAPI.defaultMode ??= 0o644;
  if (volume.projected) {
    volume.projected.defaultMode ??= 0o644;
    for (const source of volume.projected.sources ?? []) {
      if (source.serviceAccountToken) source.serviceAccountToken.expirationSeconds ??= 3600;
      fields.push(...(source.downwardAPI?.items ?? []));
    }
  }
  for (const { fieldRef, resourceFieldRef } of fields) {
    if (fieldRef) fieldRef.apiVersion ??= 'v1';
    if (resourceFieldRef) resourceFieldRef.divisor ??= '0';
  }
}

/** Tag `latest`, said or implied. */
function alwaysPulled(image: string): boolean {
  if (image.includes('@')) return false;
  const tag = /:([^:/]+)$/.exec(image)?.[1];
  return tag === undefined || tag === 'latest';
}

/** As the ServiceAccount admission plugin does it. */
function addAccountVolume(spec: PodSpec): void {
  const without = allContainers(spec).filter(
    ({ volumeMounts }) => !volumeMounts?.some(({ mountPath }) => mountPath === accountMount),
  );
  if (without.length === 0) return;
  const name = `kube-api-access-${randomBytes(3).toString('hex').slice(0, 5)}`;
  for (const container of without) {
    container.volumeMounts = [
      ...(container.volumeMounts ?? []),
      { name, readOnly: true, mountPath: accountMount },
    ];
  }
  const items = [{ path: 'namespace', fieldRef: { apiVersion: 'v1', fieldPath: 'metadata.namespace' } }];
  const sources = [
    { serviceAccountToken: { expirationSeconds: 3607, path: 'token' } },
    { configMap: { name: 'kube-root-ca.crt', items: [{ key: 'ca.crt', path: 'ca.crt' }] } },
    { downwardAPI: { items } },
  ];
  spec.volumes = [...(spec.volumes ?? []), { name, projected: { sources, defaultMode: 0o644 } }];
}

/** cpu and memory alone count (Kubernetes, "Pod Quality of Service Classes"). */
function qosClass(spec: PodSpec): string {
  let any = false;
  let all = true;
  for (const { resources } of allContainers(spec)) {
    for (const name of ['cpu', 'memory']) {
      const limit = resources?.limits?.[name];
      const request = resources?.requests?.[name];
      if (isPositive(limit) || isPositive(request)) any = true;
      if (!isPositive(limit) || request !== limit) all = false;
    }
  }
  return any ? (all ? 'Guaranteed' : 'Burstable') : 'BestEffort';
}

const isPositive = (quantity: string | undefined) =>
  quantity !== undefined && !/^0*\.?0*[A-Za-z]*$/.test(quantity);
