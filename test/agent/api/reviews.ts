/** An apiserver client for tests that answers reviews and nothing else. */
import type { ApiserverClient } from '../../../agent/apiserver/types.ts';
import { type Clock, systemClock } from '../../../runtime/host/clock.ts';

export interface Review {
  readonly path: string;
  readonly spec: {
    readonly token?: string;
    readonly user?: string;
    readonly groups?: readonly string[];
    readonly resourceAttributes?: {
      readonly verb: string;
      readonly subresource: string;
      readonly name: string;
    };
  };
}

/** `answer` gives the `status` of a review; what it throws the client throws. */
export function reviewClient(answer: (review: Review) => object | undefined): {
  client: ApiserverClient;
  asked: Review[];
} {
  const asked: Review[] = [];
  const never = () => Promise.reject(new Error('not for this test'));
  return {
    asked,
    client: {
      get: never,
      list: never,
      replace: never,
      patch: never,
      delete: never,
      watch: () => {
        throw new Error('not for this test');
      },
      requests: new Map(),
      close: async () => {},
      async create<T>(path: string, body: object): Promise<T> {
        const review = { path, spec: (body as Review).spec };
        asked.push(review);
        return { ...body, status: answer(review) } as T;
      },
    },
  };
}

/** A clock whose monotonic time the test moves. */
export function handClock(): Clock & { move(ms: number): void } {
  let ms = 1000;
  return {
    ...systemClock,
    monotonic: () => ms,
    move(by) {
      ms += by;
    },
  };
}
