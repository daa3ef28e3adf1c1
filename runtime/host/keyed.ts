/** Work that must not overlap for one key (a sandbox, a container, a pod), and may for different keys. */

export interface KeyedQueue {
  /** Runs `body` after everything earlier for `key` has settled. */
  run<T>(key: string, body: () => Promise<T>): Promise<T>;
  /** Keys with work in progress. */
  readonly size: number;
}

export function keyedQueue(): KeyedQueue {
  const tails = new Map<string, Promise<unknown>>();
  return {
    run(key, body) {
      const result = (tails.get(key) ?? Promise.resolve()).then(body, body);
      const tail = result.then(
        () => {},
        () => {},
      );
      tails.set(key, tail);
      void tail.then(() => {
        if (tails.get(key) === tail) tails.delete(key);
      });
      return result;
    },
    get size() {
      return tails.size;
    },
  };
}
