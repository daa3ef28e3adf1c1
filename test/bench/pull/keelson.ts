/**
 * keelson's image store as the agent has it, in a process of its own: opens the store in the folder of its last
 * argument but one, says that it is ready, and on a line of standard input pulls the image of its last argument. Ends
 * with standard input. Prints JSON lines: `{"ready":true}`, then what PullReport says.
 */
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
  /** CPU time of the main thread within the gap that had most: what is over it, the thread did not get or slept. */
  readonly mainBlockCpuMs: number;
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

/** Looks every millisecond; the function that it returns ends that and tells the longest gap, less that millisecond. */
function watchEventLoop(): () => { mainBlockMs: number; mainBlockCpuMs: number } {
  let wall = 0;
  let cpu = 0;
  let lastWall = performance.now();
  let lastCpu = process.threadCpuUsage();
  const look = () => {
    const nowWall = performance.now();
    const nowCpu = process.threadCpuUsage();
    wall = Math.max(wall, nowWall - lastWall);
    cpu = Math.max(cpu, (nowCpu.user + nowCpu.system - lastCpu.user - lastCpu.system) / 1000);
    lastWall = nowWall;
    lastCpu = nowCpu;
  };
  const timer = setInterval(look, 1);
  return () => {
    clearInterval(timer);
    look();
    return { mainBlockMs: Math.max(0, wall - 1), mainBlockCpuMs: cpu };
  };
}
