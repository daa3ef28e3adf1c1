/** Stopping one container: its preStop hook, its stop signal, KILL. */
import { abortError, describe } from '../../../runtime/host/errors.ts';
import { minimumGraceSeconds } from '../plan/memory.ts';
import { allContainers } from '../spec/pod.ts';
import { type ActionContext, tell } from './context.ts';
import { runHook } from './hooks.ts';

/**
 * Ends the container. The hook and the stop signal share the time until `deadline` (wall clock); the container
 * always gets two seconds between signal and KILL.
 */
export async function stopContainer(
  context: ActionContext,
  name: string,
  id: string,
  deadline: number,
  message: string,
  again: boolean,
): Promise<void> {
  const { clock, runtime, signal } = context;
  const container = allContainers(context.pod).find((one) => one.name === name);
  const hook = container?.lifecycle?.preStop;
  // Interrupted and asked for again with less time: neither told nor hooked twice.
  if (!again) tell(context, name, 'Normal', 'Killing', message);
  const left = () => deadline - clock.now();
  if (!again && container !== undefined && hook !== undefined && left() > 0) {
    const limit = new AbortController();
    const cancel = clock.after(left(), () => limit.abort());
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
  await runtime.stopContainer(id, Math.max(minimumGraceSeconds * 1000, Math.ceil(left())), signal);
}
