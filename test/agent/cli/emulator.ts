/** A small terminal: what a user would see of a program's output. Throws on anything that it does not know. */
export interface Emulator {
  write(text: string): void;
  /** All lines from the first, what has scrolled off included, without spaces at their ends. */
  lines(): string[];
  readonly cursorShown: boolean;
  /** How many characters the lines have wrapped because they were too long. */
  readonly wrapped: number;
}

export function makeEmulator(columns: number, rows: number): Emulator {
  const grid: string[][] = [[]];
  let row = 0;
  let column = 0;
  let cursorShown = true;
  let wrapped = 0;
  /** The first row on the screen: rows above have scrolled off and cannot be reached any more. */
  const top = () => Math.max(0, grid.length - rows);
  const down = () => {
    row++;
    if (row === grid.length) grid.push([]);
  };
  const put = (character: string) => {
    if (column === columns) {
      wrapped++;
      column = 0;
      down();
    }
    const line = grid[row]!;
    while (line.length < column) line.push(' ');
    line[column++] = character;
  };
  const control = (parameters: string, final: string) => {
    if (final === 'A') row = Math.max(top(), row - Number(parameters || 1));
    else if (final === 'K' && parameters === '') grid[row]!.length = Math.min(column, grid[row]!.length);
    else if (final === 'J' && parameters === '') {
      grid[row]!.length = Math.min(column, grid[row]!.length);
      grid.length = row + 1;
    } else if (parameters === '?25') cursorShown = final === 'h';
    else if (parameters !== '?2026') throw new Error(`unknown sequence ESC [ ${parameters} ${final}`);
  };
  return {
    write(text) {
      for (const [, parameters, final, character] of text.matchAll(/\x1b\[([?\d;]*)([A-Za-z])|([\s\S])/gu)) {
        if (final !== undefined) control(parameters!, final);
        else if (character === '\n') {
          // A pseudo-terminal has made `\r\n` of it; a test that writes without one means the same.
          column = 0;
          down();
        } else if (character === '\r') column = 0;
        else if (character! < ' ') throw new Error(`unknown control character ${JSON.stringify(character)}`);
        else put(character!);
      }
    },
    lines() {
      const lines = grid.map((line) => line.join('').trimEnd());
      while (lines.at(-1) === '') lines.pop();
      return lines;
    },
    get cursorShown() {
      return cursorShown;
    },
    get wrapped() {
      return wrapped;
    },
  };
}
