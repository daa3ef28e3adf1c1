/** Messages to conmon over its control fifo (conmon's src/ctrl.c): a line each, `<event> <height> <width>`. */
import { constants } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { sleep, systemClock } from '../host/clock.ts';
import { keyedQueue } from '../host/keyed.ts';
import { unreadBytes } from '../host/syscalls.ts';

const queue = keyedQueue();
const againMs = 5;

/**
 * Writes `line` to the conmon of `bundle`, once it has read what was written before: of two lines in one read it takes
 * the first one twice (read_from_ctrl_buffer of conmon 2.1). Throws ENXIO or ENOENT where no conmon runs; ABORTED.
 */
export function tellMonitor(bundle: string, line: string, signal: AbortSignal): Promise<void> {
  return queue.run(bundle, async () => {
    signal.throwIfAborted();
    const control = await open(join(bundle, 'ctl'), constants.O_WRONLY | constants.O_NONBLOCK);
    try {
      // A fifo tells nobody that it has been read; conmon does so at once, unless the machine is very busy.
      while (unreadBytes(control.fd) > 0) await sleep(systemClock, againMs, signal);
      await control.write(`${line}\n`);
    } finally {
      await control.close();
    }
  });
}
