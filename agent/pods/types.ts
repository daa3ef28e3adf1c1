/** The words of the pod worker: where pods come from, what is observed, what is to be done. */
import type { ContainerStatus, PodSandboxStatus } from '../../runtime/api.ts';
import type { Pod } from '../apiserver/types.ts';

/** `api` pods are written back to the apiserver; `file` and `url` ones are static. */
export type PodSourceKind = 'api' | 'file' | 'url';

/** Where sources put what they know. Calls are cheap and synchronous; work happens in the pods' workers. */
export interface PodSink {
  /** The complete list of a source: what it no longer holds is deleted. Called after each (re)list. */
  replaceAll(source: PodSourceKind, pods: readonly Pod[]): void;
  upsert(source: PodSourceKind, pod: Pod): void;
  /** The object is gone from the source: end the pod at once, with its grace where nothing else was said. */
  remove(source: PodSourceKind, uid: string): void;
}

/** What the runtime says about one pod, newest sandbox first. */
export interface ObservedPod {
  readonly sandboxes: readonly PodSandboxStatus[];
  /** All containers of all its sandboxes, exited ones too, newest first. */
  readonly containers: readonly ContainerStatus[];
}
