/** Giving memory back after work that comes only now and then: the start, a pull, a burst of pods. */
import { readFile } from 'node:fs/promises';
import { dropPages, trimHeap } from './syscalls.ts';

interface Mapping {
  readonly start: bigint;
  readonly length: bigint;
}

/**
 * The parts of `program` in an smaps text (proc(5)) that hold nothing but what stands in the file: without
 * anonymous pages and not writable, so that dropping their pages loses nothing. Pure.
 */
export function cleanMappings(smaps: string, program: string): Mapping[] {
  const found: Mapping[] = [];
  let candidate: Mapping | undefined;
  for (const line of smaps.split('\n')) {
    const header = /^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)$/.exec(line);
    if (header !== null) {
      const [, from, to, permissions, path] = header as unknown as string[];
      const start = BigInt(`0x${from}`);
      const length = BigInt(`0x${to}`) - start;
      candidate = path === program && !permissions!.includes('w') ? { start, length } : undefined;
    } else if (candidate !== undefined && line.startsWith('Anonymous:')) {
      if (/^Anonymous:\s+0 kB$/.test(line)) found.push(candidate);
      candidate = undefined;
    }
  }
  return found;
}

/** Only where Node runs with --expose-gc, as the launcher starts it. */
const collectGarbage = globalThis.gc as
  | ((options: { type: 'major'; execution: 'async' }) => Promise<void>)
  | undefined;

/**
 * Lets go of garbage, of what the C heap holds free, and of the program text that is mapped but not needed now: Node.js maps
 * 50 MiB of its file while it starts and uses a third of it afterwards. What is needed again comes back from the
 * page cache, some microseconds a page. Takes a few milliseconds.
 */
export async function giveMemoryBack(): Promise<void> {
  // Twice: what the first time finalizes is free only after the second.
  for (let times = 0; times < 2; times++) await collectGarbage?.({ type: 'major', execution: 'async' });
  trimHeap();
  const smaps = await readFile('/proc/self/smaps', 'utf8');
  for (const { start, length } of cleanMappings(smaps, process.execPath)) dropPages(start, length);
}
