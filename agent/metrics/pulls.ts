/** Counts what pulls do, from the progress that the image service tells. */
import type { ImageService, PullProgress } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { isError } from '../../runtime/host/errors.ts';
import { type Histogram, type MetricFamily, type MetricsSource, makeHistogram } from './source.ts';

// kubelet's own (pkg/kubelet/metrics): dashboards are made for them.
const durationBuckets = [
  1, 5, 10, 20, 30, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600,
];
const mebi = 1 << 20;
const gibi = 1 << 30;
const sizes: readonly (readonly [above: number, label: string])[] = [
  [0, '0-10MB'],
  [10 * mebi, '10MB-100MB'],
  [100 * mebi, '100MB-500MB'],
  [500 * mebi, '500MB-1GB'],
  [gibi, '1GB-5GB'],
  [5 * gibi, '5GB-10GB'],
  [10 * gibi, '10GB-20GB'],
  [20 * gibi, '20GB-30GB'],
  [30 * gibi, '30GB-40GB'],
  [40 * gibi, '40GB-60GB'],
  [60 * gibi, '60GB-100GB'],
  [100 * gibi, 'GT100GB'],
];

/** kubelet's label for the size of an image in bytes. */
export function sizeLabel(bytes: number): string {
  return sizes.findLast(([above]) => bytes > above)?.[1] ?? 'N/A';
}

/** A layer that at least one running pull has told of. The same one may be told of by several: it is fetched once. */
interface Layer {
  readonly pulls: Set<object>;
  progress: PullProgress;
  ended: boolean;
}

/** The same image service, with its pulls counted; `source` has the numbers. */
export function countPulls<T extends ImageService>(
  images: T,
  clock: Clock,
): { readonly images: T; readonly source: MetricsSource } {
  const layers = new Map<string, Layer>();
  const running = new Set<object>();
  const durations = new Map<string, Histogram>();
  const layersBy = { fetched: 0, present: 0, failed: 0 };
  const pullsBy = { succeeded: 0, failed: 0, aborted: 0 };

  const hear = (pull: object, progress: PullProgress) => {
    const { digest, phase } = progress;
    let layer = layers.get(digest);
    if (layer === undefined) {
      layer = { pulls: new Set(), progress, ended: false };
      layers.set(digest, layer);
    }
    layer.pulls.add(pull);
    layer.progress = progress;
    if (phase === 'downloading') layer.ended = false;
    else if (!layer.ended && (phase === 'done' || phase === 'present')) {
      layer.ended = true;
      layersBy[phase === 'done' ? 'fetched' : 'present']++;
    }
  };
  const leave = (pull: object) => {
    running.delete(pull);
    for (const [digest, layer] of layers) {
      if (!layer.pulls.delete(pull) || layer.pulls.size > 0) continue;
      if (!layer.ended) layersBy.failed++;
      layers.delete(digest);
    }
  };

  const pullImage: ImageService['pullImage'] = async (spec, options = {}) => {
    const pull = {};
    running.add(pull);
    const started = clock.monotonic();
    try {
      const id = await images.pullImage(spec, {
        ...options,
        onProgress(progress) {
          hear(pull, progress);
          options.onProgress?.(progress);
        },
      });
      const seconds = (clock.monotonic() - started) / 1000;
      pullsBy.succeeded++;
      const label = sizeLabel((await images.imageStatus({ image: id }))?.size ?? 0);
      const histogram = durations.get(label) ?? makeHistogram(durationBuckets);
      durations.set(label, histogram);
      histogram.observe(seconds);
      return id;
    } catch (error) {
      pullsBy[isError(error, 'ABORTED') || options.signal?.aborted ? 'aborted' : 'failed']++;
      throw error;
    } finally {
      leave(pull);
    }
  };

  const families = (): readonly MetricFamily[] => {
    const open = [...layers.values()].filter(({ ended }) => !ended).map(({ progress }) => progress);
    const inPhase = (phase: PullProgress['phase']) => ({
      labels: { phase },
      value: open.filter((progress) => progress.phase === phase).length,
    });
    const one = (value: number) => [{ value }];
    const byResult = (counts: Readonly<Record<string, number>>) =>
      Object.entries(counts).map(([result, value]) => ({ labels: { result }, value }));
    return [
      {
        name: 'keelson_image_pull_layers_total',
        help: 'Layers that pulls fetched, found present, or did not get.',
        type: 'counter',
        samples: byResult(layersBy),
      },
      {
        name: 'keelson_image_pulls_total',
        help: 'Pulls that ended; several that share one fetch count each.',
        type: 'counter',
        samples: byResult(pullsBy),
      },
      {
        name: 'keelson_image_pulls_in_flight',
        help: 'Pulls that run now.',
        type: 'gauge',
        samples: one(running.size),
      },
      {
        name: 'keelson_image_pull_layers_in_flight',
        help: 'Layers that running pulls lack, by phase.',
        type: 'gauge',
        samples: (['waiting', 'downloading', 'verifying'] as const).map(inPhase),
      },
      {
        name: 'keelson_image_pull_pending_bytes',
        help: 'Bytes that running pulls have still to fetch.',
        type: 'gauge',
        samples: one(open.reduce((sum, layer) => sum + Math.max(0, layer.totalBytes - layer.bytes), 0)),
      },
      {
        name: 'kubelet_image_pull_duration_seconds',
        help: 'Duration in seconds to pull an image.',
        type: 'histogram',
        samples: [...durations].flatMap(([label, histogram]) =>
          histogram.samples({ image_size_in_bytes: label }),
        ),
      },
    ];
  };
  return { images: { ...images, pullImage }, source: { families } };
}
