/** The picture of a pull on a terminal: one line for each layer and a sum below. Pure. */
import type { PullProgress } from '../../../runtime/api.ts';
import { formatBytes, printable, shortId } from './text.ts';

export interface Window {
  readonly columns: number;
  readonly rows: number;
}

const idWidth = 12;
const phaseWidth = 11;
const amountWidth = 17;
const speedWidth = 10;
const narrowestBar = 10;
const widestBar = 40;

/**
 * The lines of one picture: none is as wide as the window (nothing wraps), and together with the cursor's line they fit
 * into its rows. Where they would not, layers that are at work go before those that wait, and those before finished ones;
 * all keep their order.
 */
export function drawBars(title: string, layers: readonly PullProgress[], window: Window): string[] {
  const width = Math.max(1, window.columns - 1);
  const room = Math.max(0, window.rows - 2);
  const shown = choose(layers, room);
  const lines = shown.map((layer) => drawLayer(layer, width));
  if (window.rows > 1) lines.push(drawSum(title, layers, layers.length - shown.length, width));
  return lines.map((line) => line.trimEnd().slice(0, width));
}

const rank: Readonly<Record<PullProgress['phase'], number>> = {
  downloading: 0,
  verifying: 0,
  waiting: 1,
  done: 2,
  present: 2,
};

function choose(layers: readonly PullProgress[], room: number): readonly PullProgress[] {
  if (layers.length <= room) return layers;
  const best = layers
    .map((layer, at) => ({ at, rank: rank[layer.phase] ?? 1 }))
    .sort((a, b) => a.rank - b.rank || a.at - b.at)
    .slice(0, room)
    .map(({ at }) => at);
  const chosen = new Set(best);
  return layers.filter((_, at) => chosen.has(at));
}

function drawLayer(
  { digest, phase, bytes, totalBytes, bytesPerSecond }: PullProgress,
  width: number,
): string {
  const ended = phase === 'done' || phase === 'present';
  const name = `${printable(shortId(digest)).padEnd(idWidth)}  ${printable(phase).padEnd(phaseWidth)}`;
  const amount = ended ? formatBytes(totalBytes) : `${formatBytes(bytes)} / ${formatBytes(totalBytes)}`;
  const speed = phase === 'downloading' && bytesPerSecond > 0 ? `${formatBytes(bytesPerSecond)}/s` : '';
  let left = width - idWidth - 2 - phaseWidth;
  const take = (columns: number) => {
    if (left < columns + 2) return false;
    left -= columns + 2;
    return true;
  };
  const hasAmount = take(amountWidth);
  const hasSpeed = hasAmount && take(speedWidth);
  const bar = left - 4 >= narrowestBar ? Math.min(widestBar, left - 4) : 0;
  const share = ended || phase === 'verifying' ? 1 : totalBytes > 0 ? Math.min(1, bytes / totalBytes) : 0;
  return [
    name,
    ...(bar > 0 ? [ended ? ' '.repeat(bar + 2) : drawBar(share, bar)] : []),
    ...(hasAmount ? [amount.padStart(amountWidth)] : []),
    ...(hasSpeed ? [speed.padStart(speedWidth)] : []),
  ].join('  ');
}

function drawBar(share: number, width: number): string {
  const full = Math.floor(share * width);
  const head = full > 0 && full < width ? `${'='.repeat(full - 1)}>` : '='.repeat(full);
  return `[${head.padEnd(width)}]`;
}

function drawSum(title: string, layers: readonly PullProgress[], hidden: number, width: number): string {
  const sum = sumUp(layers);
  const facts = [
    `${sum.ended} of ${layers.length} layers`,
    `${formatBytes(sum.bytes)} of ${formatBytes(sum.totalBytes)}`,
    ...(sum.bytesPerSecond > 0 ? [`${formatBytes(sum.bytesPerSecond)}/s`] : []),
    ...(hidden > 0 ? [`${hidden} not shown`] : []),
  ].join(', ');
  const name = printable(title);
  // Of a long name the end says the most.
  const space = width - facts.length - 2;
  if (name.length <= space) return `${name}: ${facts}`;
  return space > 8 ? `…${name.slice(name.length - space + 1)}: ${facts}` : facts;
}

/** Layers that are present already count as fetched. */
export function sumUp(layers: readonly PullProgress[]): {
  readonly ended: number;
  readonly bytes: number;
  readonly totalBytes: number;
  readonly bytesPerSecond: number;
} {
  const sum = { ended: 0, bytes: 0, totalBytes: 0, bytesPerSecond: 0 };
  for (const { phase, bytes, totalBytes, bytesPerSecond } of layers) {
    const ended = phase === 'done' || phase === 'present';
    if (ended) sum.ended++;
    sum.bytes += ended ? totalBytes : Math.min(bytes, totalBytes);
    sum.totalBytes += totalBytes;
    if (phase === 'downloading') sum.bytesPerSecond += bytesPerSecond;
  }
  return sum;
}
