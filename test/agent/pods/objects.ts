/** Pods, containers and sandboxes for the tests of the pods room. */

import type { Pod, PodContainer } from '../../../agent/apiserver/types.ts';
import { containerHash } from '../../../agent/pods/spec/container_config.ts';
import type { ContainerStatus, PodSandboxStatus } from '../../../runtime/api.ts';

export const time = Date.parse('2026-01-01T00:00:00Z');

export function makePod(spec: Partial<NonNullable<Pod['spec']>> = {}, rest: Partial<Pod> = {}): Pod {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    ...rest,
    metadata: {
      name: 'web',
      namespace: 'default',
      uid: 'uid-1',
      generation: 1,
      resourceVersion: '1',
      ...rest.metadata,
    },
    spec: { containers: [{ name: 'app', image: 'example:1' }], restartPolicy: 'Always', ...spec },
    status: { phase: 'Pending', qosClass: 'BestEffort', ...rest.status },
  };
}

export function makeSandbox(
  id: string,
  rest: Partial<PodSandboxStatus> & { attempt?: number } = {},
): PodSandboxStatus {
  const { attempt = 0, ...others } = rest;
  return {
    id,
    metadata: { name: 'web', namespace: 'default', uid: 'uid-1', attempt },
    state: 'ready',
    createdAt: time + attempt,
    labels: { 'io.kubernetes.pod.uid': 'uid-1' },
    annotations: {},
    runtimeHandler: '',
    ips: ['10.88.0.2'],
    namespaces: { network: 'pod', pid: 'container', ipc: 'pod' },
    ...others,
  };
}

export function makeContainer(
  id: string,
  container: PodContainer,
  state: ContainerStatus['state'],
  rest: Partial<ContainerStatus> & { attempt?: number } = {},
): ContainerStatus {
  const { attempt = 0, ...others } = rest;
  return {
    id,
    podSandboxId: 's0',
    metadata: { name: container.name, attempt },
    image: container.image ?? '',
    imageRef: 'sha256:abc',
    imageDigestRef: 'docker.io/library/example@sha256:def',
    state,
    createdAt: time + attempt * 1000,
    labels: { 'io.kubernetes.pod.uid': 'uid-1', 'io.kubernetes.container.name': container.name },
    annotations: {
      'io.kubernetes.container.hash': containerHash(container),
      'io.kubernetes.container.restartCount': String(attempt),
    },
    startedAt: state === 'created' ? 0 : time + attempt * 1000,
    finishedAt: state === 'exited' ? time + attempt * 1000 + 500 : 0,
    exitCode: 0,
    reason: state === 'exited' ? 'Completed' : '',
    message: '',
    logPath: `/var/log/pods/default_web_uid-1/${container.name}/${attempt}.log`,
    mounts: [],
    pid: state === 'running' ? 100 : 0,
    ...others,
  };
}

/** A small seeded generator (mulberry32): the same numbers for the same seed. */
export function seeded(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
