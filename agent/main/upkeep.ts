/** What looks after the node's disk: images that nobody uses, logs that grow, archives that people put there. */
import { join } from 'node:path';
import type { ImageFolder, ImageFolderOptions } from '../../images/archive/watch.ts';
import type { RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { parseQuantity } from '../apiserver/quantity.ts';
import type { EventRecorder } from '../apiserver/types.ts';
import type { AgentConfig } from '../config/load.ts';
import { type ImageGc, type ImageGcOptions, startImageGc } from '../images/gc.ts';
import { type LogRotationOptions, startLogRotation } from '../logs/rotate.ts';
import type { FactsReader } from '../node/facts.ts';

export function openImageGc(
  config: AgentConfig,
  parts: Pick<ImageGcOptions, 'images' | 'pods'> & {
    readonly facts: FactsReader;
    readonly events: EventRecorder;
    readonly clock: Clock;
    readonly log: Logger;
  },
): ImageGc {
  const { facts, log, ...rest } = parts;
  return startImageGc({
    ...rest,
    disk: async () => (await facts.read()).imagefs,
    thresholds: {
      highPercent: config.imageGCHighThresholdPercent,
      lowPercent: config.imageGCLowThresholdPercent,
      minimumAgeMs: config.imageMinimumGCAge,
      maximumAgeMs: config.imageMaximumGCAge,
    },
    nodeName: config.nodeName,
    log: log.child({ room: 'images' }),
  });
}

/** Returns what ends it. */
export function rotateLogs(
  config: AgentConfig,
  parts: Pick<LogRotationOptions, 'logs'> & {
    readonly runtime: RuntimeService;
    readonly clock: Clock;
    readonly log: Logger;
  },
): () => Promise<void> | void {
  const rotation = startLogRotation({
    ...parts,
    maxBytes: parseQuantity(config.containerLogMaxSize),
    maxFiles: config.containerLogMaxFiles,
    workers: config.containerLogMaxWorkers,
    everyMs: config.containerLogMonitorInterval,
    log: parts.log.child({ room: 'logs' }),
  });
  return () => rotation.close();
}

/** Takes images from archives in a folder. */
export async function watchArchives(
  { keelson }: AgentConfig,
  parts: Omit<ImageFolderOptions, 'folder'>,
): Promise<ImageFolder> {
  const { watchImageFolder } = await import('../../images/archive/watch.ts');
  return watchImageFolder({
    ...parts,
    folder: keelson.imagesDir ?? join(keelson.stateDir, 'images'),
    log: parts.log.child({ room: 'images' }),
  });
}
