/**
 * The way of a layer's bytes from wherever they come into its unpacking, with what is under way counted for the whole
 * node. The hot path of a pull: bytes are handed on by reference, one promise for each piece that came.
 */
import type { Unpacking } from '../unpack/pool.ts';

/** Bytes that were received and that no unpacker has taken yet, of all layers together. */
export interface Flight {
  readonly bytes: number;
  /** Layers that have an inlet. */
  readonly layers: number;
  join(): Lane;
}

/** One layer's part of them. */
export interface Lane {
  add(bytes: number): void;
  take(bytes: number): void;
  /** It should not receive more just now: more than its share, or than all together may, is under way. */
  readonly full: boolean;
  /** Resolves when it may go on. */
  room(): Promise<void>;
  leave(): void;
}

/** Each layer may always have one piece under way, so that none waits for another for ever. */
export function makeFlight(limit: number): Flight {
  let total = 0;
  let lanes = 0;
  const waiting = new Map<() => boolean, () => void>();
  const wake = () => {
    for (const [full, go] of waiting) {
      if (full()) continue;
      waiting.delete(full);
      go();
    }
  };
  return {
    get bytes() {
      return total;
    },
    get layers() {
      return lanes;
    },
    join() {
      let own = 0;
      lanes++;
      const full = () => own > 0 && (total >= limit || own >= limit / lanes);
      return {
        add(bytes) {
          own += bytes;
          total += bytes;
        },
        take(bytes) {
          own -= bytes;
          total -= bytes;
          if (waiting.size > 0) wake();
        },
        get full() {
          return full();
        },
        room: () =>
          new Promise((resolve) => {
            if (full()) waiting.set(full, resolve);
            else resolve();
          }),
        leave() {
          total -= own;
          own = 0;
          lanes--;
          waiting.get(full)?.();
          waiting.delete(full);
          wake();
        },
      };
    },
  };
}

export interface Inlet {
  /** Bytes given so far, from the beginning of the layer on. */
  readonly received: number;
  /** Takes the next bytes; they must not change any more. The giver should wait for the promise, where there is one. */
  give(bytes: Buffer): Promise<void> | undefined;
  /** Resolves when the unpacker has everything that was given. Throws what it throws. */
  drained(): Promise<void>;
  /** Forgets what the unpacker has not taken. */
  close(): void;
}

/** `onFailure` is called once, when the unpacking has failed or cannot begin. */
export function makeInlet(
  begun: Promise<Unpacking>,
  flight: Flight,
  onFailure: (error: unknown) => void,
): Inlet {
  const lane = flight.join();
  const pieces: Buffer[] = [];
  let received = 0;
  let closed = false;
  let pumping: Promise<void> | undefined;
  let failure: { readonly error: unknown } | undefined;

  const pump = async () => {
    try {
      const unpacking = await begun;
      for (let piece = pieces.shift(); piece !== undefined && !closed; piece = pieces.shift()) {
        await unpacking.write(piece);
        if (!closed) lane.take(piece.length);
      }
    } catch (error) {
      failure = { error };
      onFailure(error);
    } finally {
      pumping = undefined;
    }
  };

  return {
    get received() {
      return received;
    },
    give(bytes) {
      if (failure !== undefined) throw failure.error;
      received += bytes.length;
      lane.add(bytes.length);
      pieces.push(bytes);
      pumping ??= pump();
      return lane.full ? lane.room() : undefined;
    },
    async drained() {
      await pumping;
      if (failure !== undefined) throw failure.error;
    },
    close() {
      if (closed) return;
      closed = true;
      pieces.length = 0;
      lane.leave();
    },
  };
}
