/** Splits a stream of bytes into lines. On raw bytes: a character may be cut in two between chunks. */
import { KeelsonError } from '../../runtime/host/errors.ts';

export interface LineSplitter {
  /** The lines that `chunk` completes, without their line ends; empty ones are left out. Throws API_GARBAGE. */
  push(chunk: Buffer): Buffer[];
  /** What came after the last line end, or undefined. */
  end(): Buffer | undefined;
}

const lineFeed = 0x0a;

/** A line of more than `maxBytes` is an API_GARBAGE. */
export function makeLineSplitter(maxBytes: number): LineSplitter {
  let held: Buffer[] = [];
  let heldBytes = 0;
  const take = (piece: Buffer): Buffer => {
    const line = held.length === 0 ? piece : Buffer.concat([...held, piece]);
    held = [];
    heldBytes = 0;
    return line;
  };
  const check = (bytes: number) => {
    if (bytes > maxBytes) {
      throw new KeelsonError('API_GARBAGE', `a line of the watch is longer than ${maxBytes} bytes`);
    }
  };
  return {
    push(chunk) {
      const lines: Buffer[] = [];
      let start = 0;
      for (let end = chunk.indexOf(lineFeed); end !== -1; end = chunk.indexOf(lineFeed, start)) {
        check(heldBytes + end - start);
        const line = take(chunk.subarray(start, end));
        if (line.length > 0) lines.push(line);
        start = end + 1;
      }
      if (start < chunk.length) {
        check(heldBytes + chunk.length - start);
        held.push(chunk.subarray(start));
        heldBytes += chunk.length - start;
      }
      return lines;
    },
    end: () => (heldBytes === 0 ? undefined : take(Buffer.alloc(0))),
  };
}
