/** Pods made and deleted through the apiserver, and when a watch sees them Running and gone. */
import { reflect } from '../../../agent/apiserver/reflector.ts';
import type { ApiserverClient, Pod } from '../../../agent/apiserver/types.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import type { Logger } from '../../../runtime/host/log.ts';

/** For a pod to come or go; in milliseconds. */
const deadlineMs = 240_000;

export interface Lane {
  /** Makes the pod; resolves with the milliseconds until a watch saw it Running. */
  start(name: string): Promise<number>;
  /** Deletes it with its own grace; resolves with the milliseconds until a watch saw it gone. */
  remove(name: string): Promise<number>;
  /** All at once; resolves with the milliseconds until the last one. */
  startAll(names: readonly string[]): Promise<number>;
  removeAll(names: readonly string[]): Promise<number>;
}

export interface LaneOptions {
  readonly client: ApiserverClient;
  readonly namespace: string;
  readonly nodeName: string;
  readonly image: string;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** Pods of one node in a namespace of its own, under one watch, as any controller would hold it. */
export function openLane(options: LaneOptions): Lane {
  const { client, namespace, signal, log } = options;
  const path = `/api/v1/namespaces/${namespace}/pods`;
  const seen = new Map<string, PromiseWithResolvers<number>>();
  const at = (key: string) => {
    let entry = seen.get(key);
    if (entry === undefined) {
      entry = Promise.withResolvers<number>();
      seen.set(key, entry);
    }
    return entry;
  };
  reflect<Pod>({
    client,
    path,
    clock: systemClock,
    log,
    signal,
    onReplace: () => {},
    onUpsert: (pod) => {
      if (isRunning(pod)) at(`running ${pod.metadata?.name}`).resolve(performance.now());
    },
    onDelete: ({ metadata }) => at(`gone ${metadata?.name}`).resolve(performance.now()),
  }).synced.catch(() => {});
  const reached = async (key: string) => {
    const { promise, reject } = at(key);
    const timer = setTimeout(() => reject(new Error(`not ${key} within ${deadlineMs} ms`)), deadlineMs);
    try {
      return await promise;
    } finally {
      clearTimeout(timer);
    }
  };
  const start: Lane['start'] = async (name) => {
    const created = performance.now();
    await client.create(path, podNamed(name, options));
    return (await reached(`running ${name}`)) - created;
  };
  const remove: Lane['remove'] = async (name) => {
    const asked = performance.now();
    await client.delete(`${path}/${name}`);
    return (await reached(`gone ${name}`)) - asked;
  };
  const all = (one: (name: string) => Promise<number>) => async (names: readonly string[]) => {
    const begun = performance.now();
    await Promise.all(names.map(one));
    return performance.now() - begun;
  };
  return { start, remove, startAll: all(start), removeAll: all(remove) };
}

function isRunning(pod: Pod): boolean {
  const statuses = pod.status?.containerStatuses ?? [];
  return (
    pod.status?.phase === 'Running' && statuses.length > 0 && statuses.every(({ state }) => state?.running)
  );
}

function podNamed(name: string, { namespace, nodeName, image }: LaneOptions): object {
  return {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name, namespace },
    spec: {
      nodeName,
      terminationGracePeriodSeconds: 1,
      containers: [
        {
          name: 'main',
          image,
          imagePullPolicy: 'IfNotPresent',
          command: ['sh', '-c', 'trap exit TERM; sleep 3600 & wait'],
        },
      ],
    },
  };
}
