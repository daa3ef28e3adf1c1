/**
 * keelson's image store as the agent has it, in a process of its own: opens the store in the folder of its last
 * argument but one, says that it is ready, and on a line of standard input pulls the image of its last argument. Ends
 * with standard input. Prints JSON lines: `{"ready":true}`, then what PullReport says.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { makeImages } from '../../../images/service.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { openDatabase } from '../../../runtime/host/database.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

export interface PullReport {
  readonly id: string;
  /** From the call to its end. */
  readonly seconds: number;
  /** High-water mark of the process's resident memory until then. */
  readonly peakMib: number;
  /** The longest time in which the main thread did not get back to its event loop. */
  readonly mainBlockMs: number;
  /** The same without the time in which the thread could run, but had no processor: other threads and programs had. */
  readonly mainBlockOwnMs: number;
}

const [stateDir, image] = process.argv.slice(-2) as [string, string];
const db = openDatabase(join(stateDir, 'state.db'));
const images = await makeImages({ db, stateDir, log: makeLogger('warn'), clock: systemClock });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

console.log('{"ready":true}');
if ((await lines.next()).done !== true) {
  const gaps = watchEventLoop();
  const started = performance.now();
  const id = await images.pullImage({ image });
  const seconds = (performance.now() - started) / 1000;
  const status = await readFile('/proc/self/status', 'utf8');
  const peakMib = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)![1]) / 1024;
  console.log(JSON.stringify({ id, seconds, peakMib, ...gaps() } satisfies PullReport));
  await lines.next();
}
await images.close();
db.close();

/**
 * Looks every millisecond; the function that it returns ends that and tells the longest gaps, less that millisecond.
 * How long a thread that could run waited for a processor stands in its schedstat (kernel documentation, sched-stats).
 */
function watchEventLoop(): () => Pick<PullReport, 'mainBlockMs' | 'mainBlockOwnMs'> {
  const file = openSync(`/proc/self/task/${process.pid}/schedstat`, 'r');
  const buffer = Buffer.alloc(128);
  const waitedMs = () => {
    const length = readSync(file, buffer, 0, buffer.length, 0);
    return Number(buffer.toString('latin1', 0, length).split(' ')[1]) / 1e6;
  };
  let wall = 0;
  let own = 0;
  let lastWall = performance.now();
  let lastWaited = waitedMs();
  const look = () => {
    const nowWall = performance.now();
    const nowWaited = waitedMs();
    const gap = nowWall - lastWall - 1;
    wall = Math.max(wall, gap);
    own = Math.max(own, gap - (nowWaited - lastWaited));
    lastWall = nowWall;
    lastWaited = nowWaited;
  };
  const timer = setInterval(look, 1);
  return () => {
    clearInterval(timer);
    look();
    closeSync(file);
    return { mainBlockMs: wall, mainBlockOwnMs: own };
  };
}
