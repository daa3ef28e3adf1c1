/** Terminal sizes as they come from a client: JSON objects one after the other, `{"Width":80,"Height":24}`. Pure. */
import type { TerminalSize } from './types.ts';

const longestObject = 4096;
const largestSide = 0xffff;

/**
 * Takes the next bytes; gives the sizes whose text is complete. What is no size is passed over, as is everything after
 * text that is no object, so that a client cannot make it grow.
 */
export function makeResizeReader(): (bytes: Buffer) => TerminalSize[] {
  let text = '';
  let broken = false;
  return (bytes) => {
    if (broken) return [];
    text += bytes.toString('latin1');
    const sizes: TerminalSize[] = [];
    for (;;) {
      const end = text.indexOf('}');
      if (end < 0) break;
      const size = readSize(text.slice(0, end + 1));
      if (size !== undefined) sizes.push(size);
      text = text.slice(end + 1);
    }
    broken = text.length > longestObject;
    if (broken) text = '';
    return sizes;
  };
}

function readSize(text: string): TerminalSize | undefined {
  try {
    const fields = Object.fromEntries(
      Object.entries(JSON.parse(text) as object).map(([name, value]) => [
        name.toLowerCase(),
        value as unknown,
      ]),
    );
    const side = (value: unknown) =>
      typeof value === 'number' && Number.isInteger(value) && value >= 0 && value <= largestSide ? value : 0;
    const size = { width: side(fields['width']), height: side(fields['height']) };
    return size.width === 0 && size.height === 0 ? undefined : size;
  } catch {
    return undefined;
  }
}

/** Keeps the newest size for who listens later. */
export function makeResizes(): {
  readonly push: (size: TerminalSize) => void;
  readonly onResize: (listener: (size: TerminalSize) => void) => void;
} {
  const listeners: ((size: TerminalSize) => void)[] = [];
  let newest: TerminalSize | undefined;
  return {
    push(size) {
      newest = size;
      for (const listener of listeners) listener(size);
    },
    onResize(listener) {
      listeners.push(listener);
      if (newest !== undefined) listener(newest);
    },
  };
}
