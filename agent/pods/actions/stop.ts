/** Stopping one container: its preStop hook, its stop signal, KILL. */
import { abortError, describe } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';
import { minimumGraceSeconds } from '../plan/memory.ts';
import { everyContainer } from '../spec/pod.ts';
import { type ActionContext, tell } from './context.ts';
import { runHook } from './hooks.ts';

/**
 * Ends the container. The hook and the stop signal share the time until `deadline` (wall clock); the container
 * always gets two seconds between signal and KILL. `bare`: without the hook.
 */
export async function stopContainer(
  context: ActionContext,
  name: string,
  id: string,
  deadline: number,
  message: string,
  again: boolean,
  bare = false,
): Promise<void> {
  const { clock, runtime, signal } = context;
  const container = everyContainer(context.pod).find((one) => one.name === name);
  // Interrupted and asked for again with less time: neither told nor hooked twice.
  if (!again) tell(context, name, 'Normal', 'Killing', message);
  if (!again && !bare && container !== undefined) await preStop(context, container, id, deadline);
  const left = Math.ceil(deadline - clock.now());
  await runtime.stopContainer(id, Math.max(minimumGraceSeconds * 1000, left), signal);
}

/** Runs the container's preStop hook, where it has one, until `deadline`. Throws only when `context.signal` ends it. */
export async function preStop(
  context: ActionContext,
  container: PodContainer,
  id: string,
  deadline: number,
): Promise<void> {
  const { clock, signal } = context;
  const hook = container.lifecycle?.preStop;
  const left = deadline - clock.now();
  if (hook === undefined || left <= 0) return;
  const { name } = container;
  const limit = new AbortController();
  const cancel = clock.after(left, () => limit.abort());
  try {
    await runHook(context, container, id, hook, AbortSignal.any([signal, limit.signal]));
  } catch (error) {
    if (signal.aborted) throw abortError(signal, `stop of container ${name}`);
    // The message may hold what the hook printed: it goes to the log only.
    context.log.warn(
      { pod: context.pod.metadata?.name, container: name, error: describe(error) },
      'preStop hook failed',
    );
    tell(context, name, 'Warning', 'FailedPreStopHook', 'PreStopHook failed');
  } finally {
    cancel();
  }
}
