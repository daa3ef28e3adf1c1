/** A thread that unpacks layers, several at a time, or parts of them. */
import { flushCompileCache } from 'node:module';
import { parentPort } from 'node:worker_threads';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import { loadIgzip } from './igzip.ts';
import { makeJail } from './jail.ts';
import { createJob, decodeJob, type Job, type JobHost, wholeJob, writeJob } from './parts.ts';
import type { FromThread, Part, ToThread } from './protocol.ts';

const port = parentPort!;
// Now, and not when the first layer needs it: in the jail, a library of that name would be the layer's.
loadIgzip();
// Now, for the same reason: at its end the thread would write into the layer.
flushCompileCache();
const jail = makeJail();
const jobs = new Map<number, Job>();
const makers: Readonly<Record<Part, (begin: ToThread & { type: 'begin' }, host: JobHost) => Job>> = {
  whole: wholeJob,
  decode: decodeJob,
  create: createJob,
  write: writeJob,
};

const send = (message: FromThread, transfer?: ArrayBuffer[]) => port.postMessage(message, { transfer });

function asFailure(error: unknown): { code: KeelsonError['code']; message: string; hint?: string } {
  if (error instanceof KeelsonError) return error;
  const { message } = error as Error;
  return { code: errnoOf(error) === undefined ? 'INTERNAL' : 'SYSCALL_FAILED', message };
}

port.on('message', (message: ToThread) => {
  const { id } = message;
  if (message.type !== 'begin') {
    // None: it is settled, and the main thread does not know yet.
    const job = jobs.get(id);
    if (message.type === 'data') job?.data(message.bytes);
    else job?.[message.type]();
    return;
  }
  const fail = (error: unknown) => {
    const { code, message: text, hint } = asFailure(error);
    send({ type: 'failed', id, code, message: text, hint });
  };
  jobs.set(id, makers[message.part](message, { jail, send, fail, forget: () => jobs.delete(id) }));
});
send({ type: 'ready', id: 0 });
