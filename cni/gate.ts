/** Work that may overlap with its like, and work that must run alone (GC, by the CNI specification). */

export interface Gate {
  /** Overlaps with other shared work; waits while exclusive work runs or is next. */
  shared<T>(body: () => Promise<T>): Promise<T>;
  /** Waits for all work that was given before, and holds back what is given after. */
  exclusive<T>(body: () => Promise<T>): Promise<T>;
}

export function makeGate(): Gate {
  const running = new Set<Promise<unknown>>();
  let alone: Promise<unknown> = Promise.resolve();
  const settledOf = (work: Promise<unknown>) =>
    work.then(
      () => {},
      () => {},
    );
  return {
    shared(body) {
      const result = alone.then(body);
      const done = settledOf(result);
      running.add(done);
      void done.then(() => running.delete(done));
      return result;
    },
    exclusive(body) {
      const before = [alone, ...running];
      const result = Promise.all(before).then(body);
      alone = settledOf(result);
      return result;
    },
  };
}
