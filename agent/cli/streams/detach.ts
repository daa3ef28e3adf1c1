/** Leaving a terminal that is attached to, without ending what runs there: Ctrl-P Ctrl-Q. */
import { Transform } from 'node:stream';

const ctrlP = 0x10;
const ctrlQ = 0x11;

/** Passes on what is typed; calls `leave`, and swallows the rest, after the two keys. */
export function makeDetach(leave: () => void): Transform {
  let held = false;
  let left = false;
  return new Transform({
    transform(typed: Buffer, _encoding, done) {
      if (left) return done();
      const out: number[] = [];
      for (const key of typed) {
        if (held && key === ctrlQ) {
          left = true;
          break;
        }
        if (held) out.push(ctrlP);
        held = key === ctrlP;
        if (!held) out.push(key);
      }
      done(null, Buffer.from(out));
      if (left) leave();
    },
  });
}
