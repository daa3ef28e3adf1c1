/** A sink that remembers, and manifests to put into files. */
import type { Pod } from '../../../agent/apiserver/types.ts';
import type { PodSink } from '../../../agent/pods/types.ts';

export interface RecordingSink extends PodSink {
  readonly lists: (readonly Pod[])[];
  /** Resolves with the newest list that `accept` likes; rejects after ten seconds. */
  until(accept: (pods: readonly Pod[]) => boolean): Promise<readonly Pod[]>;
}

export function recordingSink(): RecordingSink {
  const lists: (readonly Pod[])[] = [];
  const waiting = new Set<() => void>();
  return {
    lists,
    replaceAll(source, pods) {
      if (source !== 'file') throw new Error(`source ${source}`);
      lists.push(pods);
      for (const wake of waiting) wake();
    },
    upsert: () => {
      throw new Error('upsert');
    },
    remove: () => {
      throw new Error('remove');
    },
    until(accept) {
      return new Promise((resolve, reject) => {
        const look = () => {
          const newest = lists.at(-1);
          if (newest === undefined || !accept(newest)) return;
          waiting.delete(look);
          clearTimeout(timer);
          resolve(newest);
        };
        const timer = setTimeout(() => {
          waiting.delete(look);
          reject(
            new Error(`not seen; last: ${JSON.stringify(lists.at(-1)?.map(({ metadata }) => metadata))}`),
          );
        }, 10_000);
        waiting.add(look);
        look();
      });
    },
  };
}

export const webManifest = `apiVersion: v1
kind: Pod
metadata:
  name: web
  labels:
    app: web
spec:
  hostNetwork: true
  containers:
  - name: main
    image: web:1.0
    command: [httpd, -f]
    args: [22:22, 2026-01-01]
    ports:
    - containerPort: 80
    env:
    - name: A
      value: "1"
    resources:
      limits: {cpu: 1, memory: 64Mi}
    livenessProbe:
      httpGet: {port: 80}
    volumeMounts:
    - {name: data, mountPath: /data}
  initContainers:
  - name: init
    image: init
  volumes:
  - name: data
    emptyDir: {sizeLimit: 1048576}
  - name: facts
    downwardAPI:
      defaultMode: 0440
      items: []
`;
