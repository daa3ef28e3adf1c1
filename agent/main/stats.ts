/** Measuring for the node's API, loaded with its first scrape: an agent that nobody watches pays nothing. */
import type { NodeStatsOptions } from '../api/stats/make.ts';
import type { NodeStats } from '../api/stats/types.ts';

export function lazyStats(options: NodeStatsOptions): () => Promise<NodeStats> {
  let made: Promise<NodeStats> | undefined;
  return () => {
    made ??= import('../api/stats/make.ts').then(({ makeNodeStats }) => makeNodeStats(options));
    return made;
  };
}
