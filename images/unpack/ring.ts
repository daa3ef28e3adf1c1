/**
 * How decompressed bytes get from one thread to the next: a ring of pieces in shared memory, filled in order by one
 * thread and freed in order by another. Nothing is copied or allocated for a piece, and who is ahead waits on the spot.
 */

export interface Ring {
  /** One for all: sizes are small, and posting it to a thread shares it. */
  readonly memory: SharedArrayBuffer;
  /** `control` by index: */
  readonly control: Int32Array;
  readonly pieces: number;
}

/** Places of `control`. */
const freed = 0;
const stopped = 1;
const openFiles = 2;

/** Bytes of a piece: large enough that a message for each costs nothing, small enough to stay in the cache. */
export const pieceSize = 256 << 10;
/** Should a thread die without a word, the others look up this often whether they were stopped. */
const lookUpMs = 200;

export function makeRing(pieces: number): Ring {
  return {
    memory: new SharedArrayBuffer(pieces * pieceSize),
    control: new Int32Array(new SharedArrayBuffer(3 * 4)),
    pieces,
  };
}

export function pieceOf({ memory, pieces }: Ring, number: number): Buffer {
  return Buffer.from(memory, (number % pieces) * pieceSize, pieceSize);
}

export function isStopped({ control }: Ring): boolean {
  return Atomics.load(control, stopped) !== 0;
}

/** All who wait are woken and told to give up. */
export function stop({ control }: Ring): void {
  Atomics.store(control, stopped, 1);
  for (const place of [freed, openFiles]) Atomics.notify(control, place);
}

/** Blocks this thread until piece `number` may be filled; false where the work was stopped. */
export function waitForPiece({ control, pieces }: Ring, number: number): boolean {
  for (;;) {
    if (Atomics.load(control, stopped) !== 0) return false;
    const done = Atomics.load(control, freed);
    if (number - done < pieces) return true;
    Atomics.wait(control, freed, done, lookUpMs);
  }
}

/** The oldest piece that is not free is free again. */
export function freePiece({ control }: Ring): void {
  Atomics.add(control, freed, 1);
  Atomics.notify(control, freed);
}

export function countOpened({ control }: Ring, files: number): void {
  Atomics.add(control, openFiles, files);
}

export function countClosed({ control }: Ring, files: number): void {
  Atomics.sub(control, openFiles, files);
  Atomics.notify(control, openFiles);
}

/** Blocks this thread until fewer than `most` files are open, or the work was stopped. */
export function waitForFiles({ control }: Ring, most: number): void {
  for (;;) {
    const open = Atomics.load(control, openFiles);
    if (open < most || Atomics.load(control, stopped) !== 0) return;
    Atomics.wait(control, openFiles, open, lookUpMs);
  }
}
