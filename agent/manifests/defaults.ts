/** The defaults that the apiserver gives to pods, for pods that never saw one (k8s.io/kubernetes, core/v1/defaults.go). Pure. */
import type { Pod, PodContainer, PodSpec, Volume } from '../apiserver/types.ts';

type Probe = NonNullable<PodContainer['livenessProbe']>;
type Handler = NonNullable<NonNullable<PodContainer['lifecycle']>['preStop']>;

const defaultMode = 0o644;

/** The pod with every defaulted field filled in; the pod given is not changed. */
export function defaultPod(pod: Pod): Pod {
  const { metadata, spec } = pod;
  return {
    ...pod,
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { ...metadata, namespace: metadata?.namespace || 'default' },
    ...(spec === undefined ? {} : { spec: defaultSpec(spec) }),
  };
}

function defaultSpec(spec: PodSpec): PodSpec {
  const host = spec.hostNetwork === true;
  return {
    ...spec,
    restartPolicy: spec.restartPolicy ?? 'Always',
    terminationGracePeriodSeconds: spec.terminationGracePeriodSeconds ?? 30,
    dnsPolicy: spec.dnsPolicy ?? 'ClusterFirst',
    enableServiceLinks: spec.enableServiceLinks ?? true,
    schedulerName: spec.schedulerName ?? 'default-scheduler',
    securityContext: spec.securityContext ?? {},
    containers: spec.containers.map((container) => defaultContainer(container, host)),
    ...(spec.initContainers === undefined
      ? {}
      : { initContainers: spec.initContainers.map((container) => defaultContainer(container, host)) }),
    ...(spec.volumes === undefined ? {} : { volumes: spec.volumes.map(defaultVolume) }),
  };
}

function defaultContainer(container: PodContainer, hostNetwork: boolean): PodContainer {
  const { resources, ports, env, lifecycle } = container;
  return {
    ...container,
    imagePullPolicy:
      container.imagePullPolicy ?? (isLatest(container.image ?? '') ? 'Always' : 'IfNotPresent'),
    terminationMessagePath: container.terminationMessagePath || '/dev/termination-log',
    terminationMessagePolicy: container.terminationMessagePolicy ?? 'File',
    // What is limited and not asked for is asked for as limited.
    resources:
      resources?.limits === undefined
        ? (resources ?? {})
        : { ...resources, requests: { ...resources.limits, ...resources.requests } },
    ...(ports === undefined
      ? {}
      : {
          ports: ports.map((port) => ({
            ...port,
            protocol: port.protocol ?? 'TCP',
            ...(hostNetwork && !port.hostPort ? { hostPort: port.containerPort } : {}),
          })),
        }),
    ...(env === undefined
      ? {}
      : {
          env: env.map((variable) =>
            variable.valueFrom?.fieldRef === undefined
              ? variable
              : {
                  ...variable,
                  valueFrom: { fieldRef: { apiVersion: 'v1', ...variable.valueFrom.fieldRef } },
                },
          ),
        }),
    ...defaultProbes(container),
    ...(lifecycle === undefined
      ? {}
      : {
          lifecycle: {
            ...lifecycle,
            ...(lifecycle.postStart === undefined ? {} : { postStart: defaultHandler(lifecycle.postStart) }),
            ...(lifecycle.preStop === undefined ? {} : { preStop: defaultHandler(lifecycle.preStop) }),
          },
        }),
  };
}

function defaultProbes(container: PodContainer): Partial<PodContainer> {
  const given = (['livenessProbe', 'readinessProbe', 'startupProbe'] as const).flatMap((name) => {
    const probe = container[name];
    return probe === undefined ? [] : [[name, defaultProbe(probe)] as const];
  });
  return Object.fromEntries(given);
}

function defaultProbe(probe: Probe): Probe {
  return {
    ...defaultHandler(probe),
    timeoutSeconds: probe.timeoutSeconds || 1,
    periodSeconds: probe.periodSeconds || 10,
    successThreshold: probe.successThreshold || 1,
    failureThreshold: probe.failureThreshold || 3,
    ...(probe.grpc === undefined ? {} : { grpc: { ...probe.grpc, service: probe.grpc.service ?? '' } }),
  };
}

function defaultHandler<T extends Handler>(handler: T): T {
  if (handler.httpGet === undefined) return handler;
  const { path, scheme } = handler.httpGet;
  return { ...handler, httpGet: { ...handler.httpGet, path: path || '/', scheme: scheme || 'HTTP' } };
}

function defaultVolume(volume: Volume): Volume {
  const { configMap, secret, downwardAPI, projected, hostPath } = volume;
  if (Object.keys(volume).every((key) => key === 'name')) return { ...volume, emptyDir: {} };
  return {
    ...volume,
    ...(configMap === undefined ? {} : { configMap: { defaultMode, ...configMap } }),
    ...(secret === undefined ? {} : { secret: { defaultMode, ...secret } }),
    ...(downwardAPI === undefined ? {} : { downwardAPI: { defaultMode, ...downwardAPI } }),
    ...(hostPath === undefined ? {} : { hostPath: { type: '', ...hostPath } }),
    ...(projected === undefined
      ? {}
      : {
          projected: {
            defaultMode,
            ...projected,
            sources: (projected.sources ?? []).map((source) =>
              source.serviceAccountToken === undefined
                ? source
                : {
                    ...source,
                    serviceAccountToken: { expirationSeconds: 3600, ...source.serviceAccountToken },
                  },
            ),
          },
        }),
  };
}

/** No tag and no digest, or the tag `latest`. */
function isLatest(image: string): boolean {
  const [name = '', digest] = image.split('@', 2);
  const tag = /:([^/:]*)$/.exec(name)?.[1];
  return tag === 'latest' || (tag === undefined && digest === undefined);
}
