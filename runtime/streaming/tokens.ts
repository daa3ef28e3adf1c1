/** Tokens that stand for a request once, for a minute. */
import type { Clock } from '../host/clock.ts';
import { KeelsonError } from '../host/errors.ts';

export interface Tokens<T> {
  /** Throws RESOURCE_EXHAUSTED while 1,000 are unused. */
  add(request: T): string;
  /** The request of `token`, which is worth nothing from then on; undefined where there is none that `fits`. */
  consume(token: string, fits?: (request: T) => boolean): T | undefined;
}

const lifetimeMs = 60_000;
const mostUnused = 1000;

/** `generate` gives tokens that cannot be guessed. */
export function makeTokens<T>(clock: Clock, generate: () => string): Tokens<T> {
  /** In the order of their expiry. */
  const unused = new Map<string, { readonly request: T; readonly expires: number }>();
  return {
    add(request) {
      const now = clock.monotonic();
      for (const [token, { expires }] of unused) {
        if (expires > now) break;
        unused.delete(token);
      }
      if (unused.size >= mostUnused) {
        throw new KeelsonError('RESOURCE_EXHAUSTED', `maximum number of in flight requests exceeded`);
      }
      let token = generate();
      while (unused.has(token)) token = generate();
      unused.set(token, { request, expires: now + lifetimeMs });
      return token;
    },
    consume(token, fits = () => true) {
      const entry = unused.get(token);
      unused.delete(token);
      if (entry === undefined || entry.expires <= clock.monotonic() || !fits(entry.request)) return undefined;
      return entry.request;
    },
  };
}
