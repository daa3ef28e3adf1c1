/** The parts of unpacking one layer, as jobs of a thread: see `Part` in protocol.ts. */

import { makeTarReader } from '../tar/reader.ts';
import { type Applier, makeApplier } from './apply.ts';
import { type Decoder, makeDecoder } from './decode.ts';
import type { Jail } from './jail.ts';
import type { Decoded, FromThread, Steps, ToThread, Unpacked } from './protocol.ts';
import { isStopped, pieceOf, pieceSize, type Ring, waitForPiece } from './ring.ts';
import { makeTarMap } from './tar_map.ts';
import { directWriter, doSteps, remoteWriter } from './writer.ts';

export interface Job {
  data(bytes: Uint8Array<ArrayBuffer>): void;
  end(): void;
  /** Gives up: nothing more is written when it returns, and what was open is closed or on its way to be. */
  stop(): void;
}

export interface JobHost {
  readonly jail: Jail;
  send(message: FromThread, transfer?: ArrayBuffer[]): void;
  /** Something went wrong: the layer has failed. */
  fail(error: unknown): void;
  /** The job is over. */
  forget(): void;
}

type Begin = ToThread & { type: 'begin' };

/** A layer in one thread. */
export function wholeJob({ id, folder, map, limits, algorithm }: Begin, host: JobHost): Job {
  const tarMap = makeTarMap(map);
  const applier = makeApplier(limits, directWriter, tarMap);
  const reader = makeTarReader(applier);
  const memory = Buffer.allocUnsafe(pieceSize);
  const decoder = makeDecoder(algorithm, limits, {
    next: () => memory,
    filled: (length) => reader.push(memory.subarray(0, length)),
  });
  const leave = () => {
    decoder.close();
    host.jail.leave(folder);
    host.forget();
  };
  const attempt = (body: () => void) => {
    try {
      host.jail.enter(folder);
      body();
    } catch (error) {
      applier.abandon();
      leave();
      host.fail(error);
    }
  };
  return {
    data: (bytes) =>
      attempt(() => {
        decoder.data(bytes);
        host.send({ type: 'taken', id, bytes }, [bytes.buffer]);
      }),
    end: () =>
      attempt(() => {
        const sums = decoder.end();
        reader.finish();
        const result = finished(applier, tarMap, sums);
        leave();
        host.send({ type: 'done', id, result });
      }),
    stop() {
      applier.abandon();
      leave();
      host.send({ type: 'stopped', id });
    },
  };
}

function finished(
  applier: Applier,
  map: { finish(): void },
  sums: { digest: string; diffId: string },
): Unpacked {
  map.finish();
  return { ...sums, ...applier.finish(), mapped: applier.isMapped() };
}

/** Decompresses and hashes into the ring. */
export function decodeJob({ id, limits, algorithm, ring: given, target }: Begin, host: JobHost): Job {
  const ring = given!;
  const next = target!;
  let number = 0;
  const decoder: Decoder = makeDecoder(algorithm, limits, {
    next: () => (waitForPiece(ring, number) ? pieceOf(ring, number) : undefined),
    filled(length) {
      number++;
      next.postMessage({ length } satisfies Decoded);
    },
  });
  const leave = () => {
    decoder.close();
    host.forget();
  };
  const attempt = (body: () => void) => {
    if (isStopped(ring)) return;
    try {
      body();
    } catch (error) {
      if (!isStopped(ring)) host.fail(error);
    }
  };
  return {
    data: (bytes) =>
      attempt(() => {
        decoder.data(bytes);
        host.send({ type: 'taken', id, bytes }, [bytes.buffer]);
      }),
    end: () => attempt(() => next.postMessage({ end: decoder.end() } satisfies Decoded)),
    stop() {
      leave();
      next.close();
      host.send({ type: 'stopped', id });
    },
  };
}

/** Reads the archive and makes the names; contents go on to `target`. */
export function createJob(begin: Begin, host: JobHost): Job {
  const { id, folder, limits, source, target } = begin;
  const ring = begin.ring!;
  const next = target!;
  const map = makeTarMap(begin.map);
  const writer = remoteWriter(ring, next);
  const applier = makeApplier(limits, writer, map);
  const reader = makeTarReader(applier);
  let number = 0;
  let sums: { digest: string; diffId: string } | undefined;
  const attempt = (body: () => void) => {
    if (isStopped(ring)) return;
    try {
      host.jail.enter(folder);
      body();
    } catch (error) {
      host.fail(error);
    }
  };
  source!.on('message', (message: Decoded) =>
    attempt(() => {
      if ('end' in message) {
        sums = message.end;
        reader.finish();
        next.postMessage({ end: 'done' } satisfies Steps);
      } else {
        reader.push(pieceOf(ring, number++).subarray(0, message.length));
        writer.flush(true);
      }
    }),
  );
  // The one answer of the writing thread: all contents are there.
  next.on('message', () =>
    attempt(() => host.send({ type: 'done', id, result: finished(applier, map, sums!) })),
  );
  return {
    data() {},
    end() {},
    stop() {
      applier.abandon();
      writer.flush(false);
      next.postMessage({ end: 'stopped' } satisfies Steps);
      source!.close();
      host.jail.leave(folder);
      host.forget();
      host.send({ type: 'stopped', id });
    },
  };
}

/** Writes contents and attributes, and closes. */
export function writeJob({ id, ring: given, source }: Begin, host: JobHost): Job {
  const ring: Ring = given!;
  const from = source!;
  const memory = Buffer.from(ring.memory);
  let failed = false;
  from.on('message', (message: Steps) => {
    if ('end' in message) {
      if (message.end === 'done') return from.postMessage('done');
      from.close();
      host.forget();
      host.send({ type: 'stopped', id });
      return;
    }
    try {
      doSteps(ring, memory, message);
    } catch (error) {
      if (!failed && !isStopped(ring)) host.fail(error);
      failed = true;
    }
  });
  // It is over when the part before it says so.
  return { data() {}, end() {}, stop() {} };
}
