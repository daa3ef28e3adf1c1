/** What fetching layers has come to, as the image room counts it. */
import type { MetricsSource } from './source.ts';

/** Since the start of the process. */
export interface FetchCounts {
  readonly bytesFetched: number;
  readonly layersResumed: number;
  readonly retries: number;
}

export function fetchMetrics(read: () => FetchCounts): MetricsSource {
  const counter = (name: string, help: string, value: number) =>
    ({ name, help, type: 'counter', samples: [{ value }] }) as const;
  return {
    families() {
      const { bytesFetched, layersResumed, retries } = read();
      return [
        counter('keelson_image_pull_bytes_total', 'Bytes of layers fetched from registries.', bytesFetched),
        counter(
          'keelson_image_pull_layers_resumed_total',
          'Layers of which a part was on the disk already.',
          layersResumed,
        ),
        counter('keelson_image_pull_retries_total', 'Fetches of layers taken up again.', retries),
      ];
    },
  };
}
