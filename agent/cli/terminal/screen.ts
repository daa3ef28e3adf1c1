/** Draws lines in place on a terminal. */
import type { Window } from './bars.ts';

export interface Terminal extends Window {
  write(text: string): unknown;
}

export interface Screen {
  /** Replaces what was drawn before by `lines`, each narrower than the window. */
  draw(lines: readonly string[]): void;
  /** Shows the cursor again; what was drawn stays. */
  end(): void;
}

// ECMA-48 and DEC private modes. A terminal ignores those that it does not know: 2026 shows a picture in one piece.
const hideCursor = '\x1b[?25l';
const showCursor = '\x1b[?25h';
const beginPicture = '\x1b[?2026h';
const endPicture = '\x1b[?2026l';
const clearLine = '\x1b[K';
const clearBelow = '\x1b[J';

/** One write for each picture, each line overwritten and then cleared to its end: nothing flickers. */
export function makeScreen(terminal: Terminal): Screen {
  let drawn: readonly string[] = [];
  return {
    draw(lines) {
      // In a window that has become narrower, the terminal has broken the old lines into several rows.
      const { columns, rows } = terminal;
      const height = drawn.reduce((sum, { length }) => sum + Math.max(1, Math.ceil(length / columns)), 0);
      const up = Math.min(height, Math.max(0, rows - 1));
      const start = `${beginPicture}${hideCursor}${up === 0 ? '' : `\x1b[${up}A`}\r`;
      terminal.write(
        `${start}${lines.map((line) => `${line}${clearLine}\n`).join('')}${clearBelow}${endPicture}`,
      );
      drawn = lines;
    },
    end() {
      if (drawn.length > 0) terminal.write(showCursor);
    },
  };
}
