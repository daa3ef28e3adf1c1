/** Shows the progress of a pull or an import: bars on a terminal, elsewhere a line for each change of phase. */
import type { WriteStream } from 'node:tty';
import type { PullProgress } from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { drawBars, sumUp } from './bars.ts';
import { makeScreen, type Terminal } from './screen.ts';
import { formatBytes, printable, shortId } from './text.ts';

export interface ProgressView {
  tell(progress: PullProgress): void;
  /** Draws the last picture; the view is over. */
  end(): void;
}

/** Pictures are drawn at most so often. */
const pictureMs = 100;

export interface BarsOptions {
  readonly title: string;
  readonly terminal: Terminal;
  readonly clock: Clock;
  /** Calls `listener` when the window has another size; returns the function that ends it. */
  readonly onResize: (listener: () => void) => () => void;
}

export function barsView({ title, terminal, clock, onResize }: BarsOptions): ProgressView {
  const layers = new Map<string, PullProgress>();
  const screen = makeScreen(terminal);
  let cancel: (() => void) | undefined;
  const draw = () => {
    cancel = undefined;
    if (layers.size > 0) screen.draw(drawBars(title, [...layers.values()], sizeOf(terminal)));
  };
  const soon = () => {
    cancel ??= clock.after(pictureMs, draw);
  };
  const deaf = onResize(soon);
  return {
    tell(progress) {
      layers.set(`${progress.image} ${progress.digest}`, progress);
      soon();
    },
    end() {
      cancel?.();
      deaf();
      draw();
      screen.end();
    },
  };
}

/** A terminal that does not know its size says 0. */
function sizeOf({ columns, rows }: Terminal): { columns: number; rows: number } {
  return { columns: columns || 80, rows: rows || 24 };
}

export function linesView(title: string, write: (line: string) => void): ProgressView {
  const layers = new Map<string, PullProgress>();
  return {
    tell(progress) {
      const key = `${progress.image} ${progress.digest}`;
      const before = layers.get(key)?.phase;
      layers.set(key, progress);
      const { digest, phase, totalBytes } = progress;
      if (phase !== before) write(printable(`${shortId(digest)} ${phase} (${formatBytes(totalBytes)})`));
    },
    end() {
      if (layers.size === 0) return;
      const { ended, totalBytes } = sumUp([...layers.values()]);
      write(printable(`${title}: ${ended} of ${layers.size} layers, ${formatBytes(totalBytes)}`));
    },
  };
}

/** The view that suits `stream`: bars where it is a terminal that can move its cursor. */
export function viewFor(title: string, stream: WriteStream, clock: Clock): ProgressView {
  if (!stream.isTTY || process.env['TERM'] === 'dumb') {
    return linesView(title, (line) => stream.write(`${line}\n`));
  }
  return barsView({
    title,
    clock,
    terminal: stream,
    onResize(listener) {
      stream.on('resize', listener);
      return () => stream.off('resize', listener);
    },
  });
}
