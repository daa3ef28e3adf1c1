/** Thins out what is told on the way of an operation, so that neither the socket nor its reader is flooded. */
import type { Clock } from '../../runtime/host/clock.ts';

/** Numbers of one layer are told at most so often. */
const stepMs = 100;

/** What belongs to one thing (a layer of an image), and in which state that is. */
function placeOf(progress: unknown): { key: string; state: string } {
  const { image, digest, diffId, phase, state } = progress as Record<string, unknown>;
  return { key: `${diffId ?? digest} ${image ?? ''}`, state: String(phase ?? state) };
}

export interface ThinnedStream {
  tell(progress: unknown): void;
  /** The reader takes more again. */
  drained(): void;
  /** Hands out what is still held back. */
  end(): void;
}

/**
 * Passes on each change of state at once, and the numbers in between every 100 ms for each layer. While `write` says
 * that the reader is behind (false), only the newest of each layer is kept.
 */
export function thinStream(clock: Clock, write: (progress: unknown) => boolean): ThinnedStream {
  const told = new Map<string, { state: string; at: number }>();
  const held = new Map<string, unknown>();
  let behind = false;
  const pass = (key: string, state: string, progress: unknown) => {
    held.delete(key);
    told.set(key, { state, at: clock.monotonic() });
    behind = !write(progress);
  };
  const flush = () => {
    for (const [key, progress] of [...held]) {
      if (behind) return;
      pass(key, placeOf(progress).state, progress);
    }
  };
  return {
    tell(progress) {
      const { key, state } = placeOf(progress);
      const last = told.get(key);
      const soon = last !== undefined && last.state === state && clock.monotonic() - last.at < stepMs;
      if (behind || soon) held.set(key, progress);
      else pass(key, state, progress);
    },
    drained() {
      behind = false;
      flush();
    },
    end() {
      behind = false;
      for (const [key, progress] of [...held]) pass(key, placeOf(progress).state, progress);
    },
  };
}
