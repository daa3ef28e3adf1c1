/** Moving bytes between a caller's streams and those of a process or socket, with back-pressure. */
import { finished, type Readable, type Writable } from 'node:stream';

/**
 * Copies all of `from` to `to`, and then its end; without `to`, or once `to` has gone, throws it away or, with
 * `breakOff`, closes `from`, so that who writes to it learns. Resolves when `from` is closed or ended.
 */
export function pump(from: Readable, to: Writable | undefined, breakOff: boolean): Promise<void> {
  return new Promise((resolve) => {
    // A socket of a terminal fails with EIO when the other side is closed: that is its end.
    from.on('error', () => {});
    if (to === undefined) from.resume();
    else {
      const lost = () => {
        from.unpipe(to);
        if (breakOff) from.destroy();
        else from.resume();
      };
      to.on('error', () => {});
      if (to.destroyed || to.writableEnded) lost();
      else {
        to.once('close', lost);
        from.pipe(to);
      }
    }
    finished(from, { writable: false }, () => {
      if (to !== undefined && !to.writableEnded && !to.destroyed) to.end();
      resolve();
    });
  });
}

/** Calls `leave` when `signal` aborts, also when it has; returns the function that ends the watch. */
export function onAbort(signal: AbortSignal | undefined, leave: () => void): () => void {
  if (signal?.aborted) leave();
  else signal?.addEventListener('abort', leave, { once: true });
  return () => signal?.removeEventListener('abort', leave);
}
