/** What the fetches of this process have come to, as plain numbers. */

export interface Counters {
  /** Compressed bytes of layers that came over the network or out of an archive, since the process began. */
  bytesFetched: number;
  /** Layers that were fetched and committed. */
  layersFetched: number;
  /** Fetches that went on with bytes that were on disk. */
  layersResumed: number;
  /** Connections that broke, stalled or were refused, and were tried again. */
  retries: number;
  /** Fetches that ended in an error; those that were cancelled do not count. */
  layersFailed: number;
}

export interface FetchMetrics extends Readonly<Counters> {
  /** Layers that are fetched just now. */
  readonly layersInFlight: number;
  /** Layers that wait for their turn. */
  readonly layersWaiting: number;
  /** Bytes that were received and that no unpacker has taken yet. */
  readonly bytesInFlight: number;
}

export const makeCounters = (): Counters => ({
  bytesFetched: 0,
  layersFetched: 0,
  layersResumed: 0,
  retries: 0,
  layersFailed: 0,
});
