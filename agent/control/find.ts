/**
 * Containers and pods by what people type: an id, the beginning of one, or a name. A name is as short as it is unique:
 * `CONTAINER`, `POD/CONTAINER`, `NAMESPACE/POD/CONTAINER`; `POD`, `NAMESPACE/POD`. Pure.
 */
import type { Container, PodSandbox, PodSandboxMetadata } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Kind, ListedContainer } from './protocol.ts';

/** Candidates that an error names, at most. */
const mostNamed = 10;

/** `NAMESPACE/POD`. */
export function podName({ namespace, name }: PodSandboxMetadata): string {
  return `${namespace}/${name}`;
}

/** `NAMESPACE/POD/CONTAINER`. */
export function containerName({ pod, metadata }: ListedContainer): string {
  return `${podName(pod)}/${metadata.name}`;
}

/** Containers whose sandbox has just been removed are left out. */
export function withPods(
  containers: readonly Container[],
  sandboxes: readonly PodSandbox[],
): ListedContainer[] {
  const pods = new Map(sandboxes.map(({ id, metadata }) => [id, metadata]));
  return containers.flatMap((container) => {
    const pod = pods.get(container.podSandboxId);
    return pod === undefined ? [] : [{ ...container, pod }];
  });
}

/**
 * The container that `text` means. Of several with the same full name, the one that runs, else the newest. Throws
 * NOT_FOUND, INVALID_ARGUMENT where it means several.
 */
export function findContainer(text: string, containers: readonly ListedContainer[]): ListedContainer {
  return findOne('container', text, containers, containerName, ({ state }) => state === 'running');
}

/** The same for pods: the one that is ready, else the newest. */
export function findPod<Pod extends PodSandbox>(text: string, pods: readonly Pod[]): Pod {
  return findOne(
    'pod',
    text,
    pods,
    ({ metadata }) => podName(metadata),
    ({ state }) => state === 'ready',
  );
}

interface Thing {
  readonly id: string;
  readonly createdAt: number;
}

function findOne<T extends Thing>(
  kind: Kind,
  text: string,
  all: readonly T[],
  nameOf: (thing: T) => string,
  alive: (thing: T) => boolean,
): T {
  const exact = all.find(({ id }) => id === text);
  if (exact !== undefined) return exact;
  const current = new Map<string, T>();
  for (const thing of all) {
    const name = nameOf(thing);
    if (name !== text && !name.endsWith(`/${text}`)) continue;
    const other = current.get(name);
    if (other === undefined || goesBefore(thing, other, alive)) current.set(name, thing);
  }
  const begun = /^[0-9a-f]+$/.test(text) ? all.filter(({ id }) => id.startsWith(text)) : [];
  const found = [...new Set([...current.values(), ...begun])];
  if (found.length === 1) return found[0]!;
  if (found.length === 0) {
    throw new KeelsonError('NOT_FOUND', `there is no ${kind} ${JSON.stringify(text)} on this node`, {
      hint:
        kind === 'pod'
          ? "'keelson pods --all' lists the pods"
          : "'keelson ps --all' lists the containers; pods are named with --pod where a command takes both",
    });
  }
  const named = found.slice(0, mostNamed).map((thing) => `${nameOf(thing)} (${thing.id.slice(0, 12)})`);
  const more = found.length > mostNamed ? ` and ${found.length - mostNamed} more` : '';
  throw new KeelsonError(
    'INVALID_ARGUMENT',
    `${JSON.stringify(text)} may be any of ${found.length} ${kind}s: ${named.join(', ')}${more}`,
    { hint: 'give more of the name or of the id', details: { candidates: found.map(({ id }) => id) } },
  );
}

function goesBefore<T extends Thing>(one: T, other: T, alive: (thing: T) => boolean): boolean {
  return alive(one) === alive(other) ? one.createdAt > other.createdAt : alive(one);
}

/** The container that `current` took the place of in its pod. Throws NOT_FOUND. */
export function findPrevious(
  current: ListedContainer,
  containers: readonly ListedContainer[],
): ListedContainer {
  const [previous] = containers
    .filter(
      ({ pod, metadata }) =>
        pod.uid === current.pod.uid &&
        metadata.name === current.metadata.name &&
        podName(pod) === podName(current.pod) &&
        metadata.attempt < current.metadata.attempt,
    )
    .sort((a, b) => b.metadata.attempt - a.metadata.attempt);
  if (previous !== undefined) return previous;
  throw new KeelsonError('NOT_FOUND', `there is no container before this ${containerName(current)}`, {
    hint: 'it has not been restarted, or the one before has been removed since',
  });
}
