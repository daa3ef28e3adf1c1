/** GetContainerEvents: every event from the call on, with the state of its pod, to readers of any speed. */
import type { ContainerEvent, RuntimeService } from '../api.ts';
import { isError, KeelsonError } from '../host/errors.ts';
import type { CallContext } from './handlers.ts';
import { eventTypes, nameOf } from './names.ts';
import { containerStatusTo, nanoseconds, sandboxStatusTo } from './to_wire.ts';
import type { WireInput } from './wire/types.ts';

/** Events that wait for one reader, at most. */
const maxWaiting = 4096;

/**
 * Sends until the call ends. A reader that falls too far behind is told so with UNAVAILABLE instead of getting a stream
 * with holes: he lists again and comes back, as after a restart.
 */
export async function sendEvents(
  runtime: RuntimeService,
  { signal, send }: CallContext<WireInput<'ContainerEventResponse'>>,
): Promise<void> {
  const waiting: ContainerEvent[] = [];
  let lost = false;
  let wake = () => {};
  const end = runtime.containerEvents((event) => {
    if (waiting.length < maxWaiting) waiting.push(event);
    else lost = true;
    wake();
  });
  const onAbort = () => wake();
  signal.addEventListener('abort', onAbort);
  try {
    while (!signal.aborted) {
      const event = waiting.shift();
      if (event !== undefined) await send(await messageOf(runtime, event));
      else if (lost) throw new KeelsonError('UNAVAILABLE', `the reader is ${maxWaiting} events behind`);
      else {
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    }
  } finally {
    signal.removeEventListener('abort', onAbort);
    end();
  }
}

async function messageOf(
  runtime: RuntimeService,
  { type, containerId, at, sandbox }: ContainerEvent,
): Promise<WireInput<'ContainerEventResponse'>> {
  const head = {
    containerId,
    containerEventType: nameOf(eventTypes, type),
    createdAt: nanoseconds(at),
  };
  const { uid, name, namespace, attempt } = sandbox;
  const found = (await runtime.listPodSandbox()).find(
    ({ metadata }) =>
      metadata.uid === uid &&
      metadata.attempt === attempt &&
      metadata.name === name &&
      metadata.namespace === namespace,
  );
  const status = found && (await orGone(runtime.podSandboxStatus(found.id)));
  // Of a removed sandbox the metadata at least: a reader must know whose event it is.
  if (status === undefined) {
    return { ...head, podSandboxStatus: { metadata: sandbox, state: 'SANDBOX_NOTREADY' } };
  }
  const containers = await runtime.listContainers({ podSandboxId: status.id });
  const statuses = await Promise.all(containers.map(({ id }) => orGone(runtime.containerStatus(id))));
  return {
    ...head,
    podSandboxStatus: sandboxStatusTo(status),
    containersStatuses: statuses.filter((one) => one !== undefined).map(containerStatusTo),
  };
}

/** Undefined for what was removed meanwhile. */
export async function orGone<T>(work: Promise<T>): Promise<T | undefined> {
  try {
    return await work;
  } catch (error) {
    if (isError(error, 'NOT_FOUND')) return undefined;
    throw error;
  }
}
