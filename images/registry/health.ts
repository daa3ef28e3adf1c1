/** Which mirrors do not answer: remembered for all pulls of the node, so that each costs one dial and not one per blob. */
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';

/** Milliseconds after which one that did not answer is tried again. */
export const deadFor = 60_000;
const mostRemembered = 1000;

export interface Health {
  /** The endpoint (by a key of the caller's) did not answer, for the reason in `why`. */
  failed(key: string, why: string): void;
  answered(key: string): void;
  /** Why it is not asked now, as words for an error; undefined where it may be. */
  deadBecause(key: string): string | undefined;
}

export function makeHealth(clock: Clock): Health {
  const dead = new Map<string, { since: number; why: string }>();
  return {
    failed(key, why) {
      dead.delete(key);
      dead.set(key, { since: clock.monotonic(), why });
      if (dead.size > mostRemembered) dead.delete(dead.keys().next().value!);
    },
    answered(key) {
      dead.delete(key);
    },
    deadBecause(key) {
      const found = dead.get(key);
      if (found === undefined) return undefined;
      const ago = clock.monotonic() - found.since;
      if (ago < deadFor)
        return `not asked again, as it did not answer ${Math.round(ago / 1000)} s ago (${found.why})`;
      dead.delete(key);
      return undefined;
    },
  };
}

const connectFailures = [
  ...['ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH', 'EHOSTDOWN', 'ENETDOWN', 'ENOTFOUND', 'EAI_AGAIN'],
  ...['ETIMEDOUT', 'EADDRNOTAVAIL', 'UND_ERR_CONNECT_TIMEOUT', 'UND_ERR_HEADERS_TIMEOUT'],
];

/** Whether a failed request says that nobody is there (refused, no route, no such name, no answer in time). */
export function saysDead(error: unknown): error is KeelsonError {
  return error instanceof KeelsonError && connectFailures.includes(String(error.details['code']));
}
