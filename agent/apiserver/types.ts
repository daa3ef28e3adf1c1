/** What the agent wants of an apiserver, and the objects' types by short names. */
import type { ObjectMeta } from 'kubernetes-types/meta/v1.js';

export type {
  ConfigMap,
  Container as PodContainer,
  ContainerState as PodContainerState,
  ContainerStatus as PodContainerStatus,
  Event as CoreEvent,
  Node,
  NodeCondition,
  NodeStatus,
  PersistentVolume,
  PersistentVolumeClaim,
  Pod,
  PodCondition,
  PodSpec,
  PodStatus,
  Secret,
  Service,
  Volume,
} from 'kubernetes-types/core/v1.js';
export type { ObjectMeta } from 'kubernetes-types/meta/v1.js';

/** Any Kubernetes object. */
export interface KubeObject {
  readonly apiVersion?: string;
  readonly kind?: string;
  readonly metadata?: ObjectMeta;
}

export interface KubeList<T> {
  readonly metadata: { readonly resourceVersion?: string; readonly continue?: string };
  readonly items: readonly T[];
}

export interface WatchEvent<T> {
  readonly type: 'ADDED' | 'MODIFIED' | 'DELETED' | 'BOOKMARK' | 'ERROR';
  readonly object: T;
}

export interface CallOptions {
  readonly query?: Readonly<Record<string, string>>;
  readonly signal?: AbortSignal;
  /** Milliseconds for the whole call. Default 15,000. Not for watches. */
  readonly deadlineMs?: number;
}

/** Patch formats, by their content types (Kubernetes API Concepts, "Patch"). */
export type PatchType = 'strategic' | 'merge' | 'json' | 'apply';

/**
 * A typed client for one cluster. `path` is the whole path of the resource, such as
 * `/api/v1/namespaces/default/pods/web`.
 *
 * Errors: API_UNREACHABLE (no answer, TLS, connection broken), DEADLINE_EXCEEDED, ABORTED, API_GARBAGE (an answer
 * that is not the JSON it should be) and API_STATUS with `details.status` (the HTTP status), `details.reason`
 * (metav1.Status reason, such as `NotFound`, `Conflict`, `Expired`) and `details.retryAfterMs` where the server said.
 * A call does not retry by itself, except that 429 with Retry-After is waited for within the deadline.
 */
export interface ApiserverClient {
  get<T>(path: string, options?: CallOptions): Promise<T>;
  list<T>(path: string, options?: CallOptions): Promise<KubeList<T>>;
  create<T>(path: string, body: object, options?: CallOptions): Promise<T>;
  replace<T>(path: string, body: object, options?: CallOptions): Promise<T>;
  patch<T>(path: string, type: PatchType, body: object, options?: CallOptions): Promise<T>;
  delete(path: string, body?: object, options?: CallOptions): Promise<void>;
  /** Yields events until the server ends the stream (normal end) or it breaks (throws). */
  watch<T>(path: string, options?: CallOptions): AsyncIterable<WatchEvent<T>>;
  /** Counts of requests by verb and resource since the start: for metrics and benchmarks. */
  readonly requests: ReadonlyMap<string, number>;
  close(): Promise<void>;
}

/** Records core/v1 events: aggregated, rate-limited, never throws, never waits. */
export interface EventRecorder {
  event(
    about: {
      readonly apiVersion: string;
      readonly kind: string;
      readonly metadata?: ObjectMeta;
      readonly fieldPath?: string;
    },
    type: 'Normal' | 'Warning',
    reason: string,
    message: string,
  ): void;
}

/**
 * Single objects (ConfigMaps, Secrets, …) that pods of this node refer to. The node authorizer allows get and
 * single-name watches only for what a pod bound to the node refers to.
 */
export interface ObjectCache {
  /** The object, from the cache where it is fresh enough. Throws like `ApiserverClient.get`. */
  get<T>(kind: 'configmaps' | 'secrets', namespace: string, name: string, signal?: AbortSignal): Promise<T>;
  /** The services of a namespace and the `kubernetes` service, for environment variables. */
  services(namespace: string): Promise<readonly import('kubernetes-types/core/v1.js').Service[]>;
  /** Told when a pod with these references comes and goes, so that what nobody needs is let go of. */
  retain(podUid: string, namespace: string): void;
  release(podUid: string): void;
}
