/** What a plan can ask for. Two actions with one key never run at the same time. */
import type { CrashState } from './backoff.ts';

export type Action =
  /** The pod's own cgroup. */
  | { readonly kind: 'cgroup'; readonly key: 'cgroup' }
  /** Sets all volumes up, or refreshes them. */
  | { readonly kind: 'volumes'; readonly key: 'volumes' }
  | { readonly kind: 'sandbox'; readonly key: 'sandbox'; readonly attempt: number }
  /** Makes sure that the image of a container is there. */
  | {
      readonly kind: 'image';
      readonly key: string;
      readonly container: string;
      readonly attempt: number;
      /** The reference. */
      readonly image: string;
    }
  | {
      readonly kind: 'create';
      readonly key: string;
      readonly container: string;
      readonly attempt: number;
      readonly sandboxId: string;
      readonly imageId: string;
      /** To be remembered once this is under way. */
      readonly crash?: CrashState;
    }
  /** Starts a created container and runs its postStart hook. */
  | { readonly kind: 'start'; readonly key: string; readonly container: string; readonly id: string }
  /** Runs the preStop hook and stops a container until `deadline`. */
  | {
      readonly kind: 'stop';
      readonly key: string;
      readonly container: string;
      readonly id: string;
      readonly deadline: number;
      readonly message: string;
      /** Without the preStop hook. */
      readonly bare?: true;
    }
  /** Runs the preStop hook of a container whose turn to be stopped has not come yet. */
  | {
      readonly kind: 'preStop';
      readonly key: string;
      readonly container: string;
      readonly id: string;
      readonly deadline: number;
    }
  | { readonly kind: 'stopSandbox'; readonly key: string; readonly id: string }
  | { readonly kind: 'removeSandbox'; readonly key: string; readonly id: string }
  /** Removes a dead container; `keepLogs`: not its logs, which the next one of its name follows on. */
  | { readonly kind: 'removeContainer'; readonly key: string; readonly id: string; readonly keepLogs?: true }
  | { readonly kind: 'tearDown'; readonly key: 'tearDown' }
  /** The pod's cgroup, log folder and folder: nothing is left after it. */
  | { readonly kind: 'erase'; readonly key: 'erase' }
  /** Sets the cgroups of a pod and its running containers to what the pod was given. */
  | { readonly kind: 'resize'; readonly key: 'resize'; readonly generation: number }
  /** A resize is done: tell it and record it. */
  | { readonly kind: 'resized'; readonly key: 'note/resized'; readonly generation: number }
  /** An event, once per `occasion`. */
  | {
      readonly kind: 'note';
      readonly key: string;
      readonly occasion: string;
      readonly container?: string;
      readonly type: 'Normal' | 'Warning';
      readonly reason: string;
      readonly message: string;
    };

/** Work that brings a pod up: ended when the pod is to go. */
export function isStarting(key: string): boolean {
  return /^(cgroup|volumes|sandbox|image\/.*|create\/.*|start\/.*)$/.test(key);
}

/** What is under way, by key; for stops the deadline that they were given, for images the reference. */
export type InFlight = ReadonlyMap<string, { readonly deadline?: number; readonly image?: string }>;

/**
 * Which of the wanted actions are to be started now. A stop or hook under way with a later deadline is to be
 * interrupted, and the look for an image that is not wanted any more: they are wanted again once they have ended.
 */
export function due(
  wanted: readonly Action[],
  inFlight: InFlight,
): { readonly start: readonly Action[]; readonly interrupt: readonly string[] } {
  const start = wanted.filter(({ key }) => !inFlight.has(key));
  const interrupt = wanted.flatMap((action) => {
    const running = inFlight.get(action.key);
    if (action.kind === 'image' && running?.image !== undefined && running.image !== action.image)
      return [action.key];
    return 'deadline' in action && running?.deadline !== undefined && action.deadline < running.deadline
      ? [action.key]
      : [];
  });
  return { start, interrupt };
}
