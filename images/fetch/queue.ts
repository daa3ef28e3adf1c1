/**
 * Whose turn it is to be fetched. One bounded queue serves the whole node; images take turns in it, so that a small
 * image does not wait for all layers of a big one that came a moment earlier.
 */
import type PQueue from 'p-queue';
import { abortError } from '../../runtime/host/errors.ts';

type Run = () => Promise<unknown>;
interface Place {
  readonly image?: string;
  readonly id?: string;
}
interface Waiting {
  readonly run: Run;
  readonly id: string;
  gone: boolean;
}

/**
 * The order, as p-queue wants it: a class. Images go round in a circle, each giving its oldest layer; a layer that
 * several images wait for goes at the first turn of any of them.
 */
export class FairQueue {
  /** By image; the order of the keys is that of the turns. */
  readonly #lines = new Map<string, Waiting[]>();
  readonly #byId = new Map<string, Waiting>();

  get size(): number {
    return this.#byId.size;
  }

  enqueue(run: Run, { image = '', id = '' }: Place = {}): void {
    const waiting = { run, id, gone: false };
    this.#byId.set(id, waiting);
    this.#join(image, waiting);
  }

  /** `image` waits for what was enqueued as `id`, too. Nothing happens where that has had its turn. */
  alsoFor(id: string, image: string): void {
    const waiting = this.#byId.get(id);
    if (waiting !== undefined && this.#lines.get(image)?.includes(waiting) !== true)
      this.#join(image, waiting);
  }

  dequeue(): Run | undefined {
    for (const [image, line] of this.#lines) {
      this.#lines.delete(image);
      const next = line.findIndex(({ gone }) => !gone);
      const waiting = line[next];
      if (waiting === undefined) continue;
      line.splice(0, next + 1);
      if (line.length > 0) this.#lines.set(image, line);
      this.remove(waiting.id);
      return waiting.run;
    }
    return undefined;
  }

  remove(id: string): void {
    const waiting = this.#byId.get(id);
    if (waiting === undefined) return;
    waiting.gone = true;
    this.#byId.delete(id);
    if (this.#byId.size === 0) this.#lines.clear();
  }

  filter({ image = '' }: Readonly<Place>): Run[] {
    return (this.#lines.get(image) ?? []).filter(({ gone }) => !gone).map(({ run }) => run);
  }

  /** Turns are the only order. */
  setPriority(): void {}

  #join(image: string, waiting: Waiting): void {
    const line = this.#lines.get(image);
    if (line === undefined) this.#lines.set(image, [waiting]);
    else line.push(waiting);
  }
}

export interface FetchQueue {
  /**
   * Runs `body` when it is the turn of `image`. Rejects with ABORTED when `signal` aborts before; once it has begun,
   * `body` alone decides when it ends. `alsoFor` lets it go at the turn of another image as well.
   */
  add(
    image: string,
    body: () => Promise<void>,
    signal: AbortSignal,
  ): { readonly done: Promise<void>; alsoFor(image: string): void };
  /** What waits for its turn. */
  readonly waiting: number;
}

export function makeFetchQueue(concurrency: number): FetchQueue {
  let order: FairQueue | undefined;
  let queue: PQueue<FairQueue, Place & { signal?: AbortSignal }> | undefined;
  let lastId = 0;
  // Loaded with the first pull: most starts of the agent need none.
  const open = async () => {
    const { default: Queue } = await import('p-queue');
    queue ??= new Queue<FairQueue, Place & { signal?: AbortSignal }>({
      concurrency,
      queueClass: class extends FairQueue {
        constructor() {
          super();
          order = this;
        }
      },
    });
    return queue;
  };

  const run = async (id: string, image: string, body: () => Promise<void>, signal: AbortSignal) => {
    const turns = await open();
    if (signal.aborted) throw abortError(signal, 'wait for a download');
    // p-queue gives the place of an aborted task to the next one before the task has ended: it hears only of those
    // that have not begun.
    const leave = new AbortController();
    const onAbort = () => leave.abort(abortError(signal, 'wait for a download'));
    signal.addEventListener('abort', onAbort, { once: true });
    const begin = () => {
      signal.removeEventListener('abort', onAbort);
      return body();
    };
    try {
      await turns.add(begin, { id, image, signal: leave.signal });
    } finally {
      signal.removeEventListener('abort', onAbort);
    }
  };

  return {
    add(image, body, signal) {
      const id = String(++lastId);
      return { done: run(id, image, body, signal), alsoFor: (other) => order?.alsoFor(id, other) };
    },
    get waiting() {
      return order?.size ?? 0;
    },
  };
}
