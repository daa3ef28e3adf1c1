/**
 * Gunzip by ISA-L (libisal2 of the distribution), where it is installed: a third quicker than zlib. Only four fields of its
 * `struct inflate_state` (igzip_lib.h) are touched, at offsets that have been the same in all versions of libisal.so.2, and
 * nothing is used before it has decompressed a sample rightly.
 */
import { gzipSync } from 'node:zlib';
import { isalInflate } from '../../runtime/host/syscalls.ts';

export interface Gunzip {
  /** Takes the next compressed bytes, which are copied. All that they give must be read before more are given. */
  feed(input: Uint8Array): void;
  /** Fills `out` as far as the input reaches; 0 where it is used up. Throws what `broken` makes. */
  read(out: Uint8Array): number;
  /** No more input. Throws where it is cut off. */
  finish(): void;
  close(): void;
}

/** Bytes; the structure has 87,368, with space to spare should another version need more. */
const stateSize = 256 << 10;
/** Offsets in it. */
const place = {
  nextOut: 0,
  availableOut: 8,
  nextIn: 16,
  availableIn: 32,
  blockState: 21160,
  wrapper: 21172,
} as const;
const blockFinish = 5;
const wrapperGzip = 1;

const messages: Readonly<Record<number, string>> = {
  [-1]: 'invalid block',
  [-2]: 'invalid code',
  [-3]: 'invalid distance too far back',
  [-4]: 'incorrect header check',
  [-5]: 'unknown compression method',
  [-6]: 'incorrect data check',
};

let usable = false;

/** Loads the library where it is installed, and tries it. Never throws. Before this, and without it, there is no igzip. */
export function loadIgzip(): void {
  usable ||= worksWell();
}

/** Undefined where the library is not loaded. `broken` makes the error for bad input. */
export function openIgzip(broken: (why: string) => Error): Gunzip | undefined {
  return usable ? open(broken) : undefined;
}

function worksWell(): boolean {
  if (isalInflate() === undefined) return false;
  const sample = Buffer.from(Array.from({ length: 5000 }, (_, at) => (at * at) % 251));
  const members = Buffer.concat([gzipSync(sample), gzipSync(sample)]);
  try {
    const gunzip = open((why) => new Error(why));
    const out = Buffer.alloc(20_000);
    let length = 0;
    for (let at = 0; at < members.length; at += 100) {
      gunzip.feed(members.subarray(at, at + 100));
      length += gunzip.read(out.subarray(length));
    }
    gunzip.finish();
    gunzip.close();
    return out.subarray(0, length).equals(Buffer.concat([sample, sample]));
  } catch {
    return false;
  }
}

function open(broken: (why: string) => Error): Gunzip {
  const { init, inflate, reset, addressOf } = isalInflate()!;
  const state = Buffer.alloc(stateSize);
  const view = new DataView(state.buffer, state.byteOffset, state.length);
  const pointer = addressOf(state);
  init(pointer);
  view.setUint32(place.wrapper, wrapperGzip, true);
  let input: Uint8Array = new Uint8Array();
  /** A member has ended; another may follow, or zeros, which mean nothing. */
  let between = false;
  let started = false;
  let full = false;
  let ignoreRest = false;

  const setInput = (bytes: Uint8Array) => {
    input = bytes;
    view.setBigUint64(place.nextIn, bytes.length === 0 ? 0n : addressOf(bytes), true);
    view.setUint32(place.availableIn, bytes.length, true);
  };
  const available = () => view.getUint32(place.availableIn, true);

  return {
    feed: setInput,
    read(out) {
      let filled = 0;
      while (filled < out.length && !ignoreRest && (available() > 0 || full)) {
        if (between) {
          if (input[input.length - available()] === 0) {
            ignoreRest = true;
            break;
          }
          reset(pointer);
          view.setUint32(place.wrapper, wrapperGzip, true);
          between = false;
        }
        started = true;
        view.setBigUint64(place.nextOut, addressOf(out) + BigInt(filled), true);
        view.setUint32(place.availableOut, out.length - filled, true);
        const result = inflate(pointer);
        if (result < 0) throw broken(messages[result] ?? `error ${result}`);
        filled = out.length - view.getUint32(place.availableOut, true);
        full = filled === out.length;
        if (view.getUint32(place.blockState, true) === blockFinish) {
          between = true;
          full = false;
        }
      }
      return filled;
    },
    finish() {
      if (started && !between) throw broken('unexpected end of file');
    },
    close() {},
  };
}
