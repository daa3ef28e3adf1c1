/**
 * Which events become which objects: the rules of client-go's EventCorrelator (tools/record/events_cache.go).
 * A source object that makes too many events is cut off, many similar ones become one, equal ones are counted.
 * No I/O; the caller brings the time.
 */
import { makeTokenBucket, type TokenBucket } from './rates.ts';

export interface InvolvedObject {
  readonly apiVersion: string;
  readonly kind: string;
  readonly namespace?: string;
  readonly name: string;
  readonly uid?: string;
  readonly fieldPath?: string;
  readonly resourceVersion?: string;
}

export interface Occurrence {
  readonly about: InvolvedObject;
  readonly type: 'Normal' | 'Warning';
  readonly reason: string;
  readonly message: string;
}

/** One event object at the apiserver, existing or to be. */
export interface EventRecord {
  readonly occurrence: Occurrence;
  message: string;
  count: number;
  readonly firstMs: number;
  lastMs: number;
}

export interface Correlator {
  /** The record that the occurrence belongs to, already counted; undefined when it is to be dropped. */
  add(occurrence: Occurrence, nowMs: number, monotonicMs: number): EventRecord | undefined;
}

/** client-go's figures, all of them. */
const remembered = 4096;
const perObject = { perSecond: 1 / 300, burst: 25 };
const similarLimit = 10;
const similarWindowMs = 600_000;

/** Up to nine messages are events of their own; which nine, client-go leaves to chance: here they are the first. */
interface Similar {
  lastMs: number;
  readonly messages: Set<string>;
}

export function makeCorrelator(): Correlator {
  const buckets = recentMap<TokenBucket>();
  const groups = recentMap<Similar>();
  const records = recentMap<EventRecord>();
  return {
    add(occurrence, nowMs, monotonicMs) {
      const { about, type, reason } = occurrence;
      const object = JSON.stringify([about.apiVersion, about.kind, about.namespace, about.name, about.uid]);
      // Warnings do not use up what is left for the others.
      const bucket = buckets(JSON.stringify([object, type]), () => makeTokenBucket(perObject));
      // Of all containers of a pod together.
      const group = JSON.stringify([object, type, reason]);
      const similar = groups(group, () => ({ lastMs: nowMs, messages: new Set() }));
      if (nowMs - similar.lastMs > similarWindowMs) similar.messages.clear();
      similar.lastMs = nowMs;
      let { message } = occurrence;
      let key = JSON.stringify([group, about.fieldPath, message]);
      if (!similar.messages.has(message)) {
        if (similar.messages.size >= similarLimit - 1) {
          message = `(combined from similar events): ${message}`;
          key = group;
        } else similar.messages.add(message);
      }
      const record = records(key, () => ({ occurrence, message, count: 0, firstMs: nowMs, lastMs: nowMs }));
      record.count++;
      record.message = message;
      record.lastMs = nowMs;
      return bucket.tryTake(monotonicMs) ? record : undefined;
    },
  };
}

/** A map that forgets what was used least recently. */
function recentMap<V>(): (key: string, make: () => V) => V {
  const entries = new Map<string, V>();
  return (key, make) => {
    const value = entries.get(key) ?? make();
    entries.delete(key);
    entries.set(key, value);
    if (entries.size > remembered) entries.delete(entries.keys().next().value!);
    return value;
  };
}
