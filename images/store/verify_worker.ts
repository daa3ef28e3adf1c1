/** The thread that verifies: builds a layer's archive again, hashes it, and compares its entries with the folder. */
import { createHash } from 'node:crypto';
import { setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { errnoOf, isError } from '../../runtime/host/errors.ts';
import { makeTarReader } from '../tar/reader.ts';
import { rebuildArchive } from '../unpack/tar_map.ts';
import { makeComparer } from './compare.ts';

export interface ToVerify {
  readonly folder: string;
  readonly map: string;
}

/** `failed`: it could not be found out. Else what the folder holds; `problems` is empty where it is as its archive says. */
export type Verified =
  | { readonly failed: string }
  | {
      /** Undefined where its archive cannot be built again. */
      readonly diffId: string | undefined;
      readonly size: number;
      readonly inodes: number;
      readonly problems: readonly string[];
    };

const port = parentPort!;
/** Set to 1 when the run is to end. */
const stop: Int32Array = workerData;
const goOn = () => {
  if (Atomics.load(stop, 0) !== 0) throw new Error('it was cancelled');
};
// On Linux this is the thread's own: what pods do goes first.
setPriority(0, 19);

async function verify({ folder, map }: ToVerify): Promise<Verified> {
  const hash = createHash('sha256');
  const comparer = makeComparer();
  const reader = makeTarReader({
    meta: () => {},
    begin: (entry) => comparer.add(entry),
    content: () => {},
    end: () => {},
  });
  let broken: string | undefined;
  try {
    for await (const chunk of rebuildArchive(folder, map)) {
      goOn();
      hash.update(chunk);
      reader.push(chunk);
    }
    reader.finish();
  } catch (error) {
    if (!isError(error, 'LAYER_DAMAGED', 'IMAGE_INVALID', 'IMAGE_UNSUPPORTED', 'LAYER_UNSAFE')) {
      return { failed: errnoOf(error) ?? String(error) };
    }
    broken = error.message;
  }
  if (broken !== undefined) return { diffId: undefined, size: 0, inodes: 0, problems: [broken] };
  try {
    return { diffId: `sha256:${hash.digest('hex')}`, ...comparer.compare(folder, goOn) };
  } catch (error) {
    return { failed: String(error) };
  }
}

port.on('message', (wanted: ToVerify | undefined) => {
  if (wanted === undefined) port.close();
  else void verify(wanted).then((result) => port.postMessage(result));
});
