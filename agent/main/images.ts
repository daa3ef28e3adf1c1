/** Opens the database and the image room: for the agent, and for commands where none runs. */
import { join } from 'node:path';
import { type ImagesOptions, makeImages } from '../../images/service.ts';
import { type Clock, sleep, systemClock } from '../../runtime/host/clock.ts';
import { type Database, openDatabase } from '../../runtime/host/database.ts';
import { isError } from '../../runtime/host/errors.ts';
import { type Logger, makeLogger } from '../../runtime/host/log.ts';
import type { AgentConfig } from '../config/load.ts';
import { agentListens } from '../control/client.ts';
import { type ImageHandlers, imageVerbs } from '../control/images.ts';
import { socketName } from '../control/protocol.ts';
import type { ImageAccess } from '../images/access.ts';

/** A command that works on the images where no agent runs is waited for so long. */
const commandMs = 60_000;

/**
 * Opens the database. Where it is locked and no agent answers, a command of the command line works on the images (see
 * agent/cli/session.ts): that is waited for. Throws DATABASE_LOCKED after a minute, or at once where an agent answers.
 */
export async function openState({ keelson }: AgentConfig, log: Logger, clock: Clock): Promise<Database> {
  const path = join(keelson.stateDir, 'state.db');
  const patience = clock.monotonic() + commandMs;
  for (let told = false; ; told = true) {
    try {
      return openDatabase(path, {
        onSalvage: (salvage) =>
          log.error(salvage, 'the database was damaged: a new one has what could be read of it'),
      }); // Tries for a second.
    } catch (error) {
      if (!isError(error, 'DATABASE_LOCKED') || clock.monotonic() > patience) throw error;
      if (await agentListens(join(keelson.runDir, socketName))) throw error;
      if (!told) log.warn({ path }, 'the database is in use by another keelson process: waiting for its end');
    }
    // The kernel tells nobody that a lock has become free.
    await sleep(clock, 200);
  }
}

/** No pod: nobody's secrets and service account. */
const nobody = { namespace: '', name: '', uid: '', serviceAccount: '', pullSecrets: [] } as const;

/** What the node itself has for an image: for pulls of the command line, and for mirrors. */
export function authsOfNode(access: () => ImageAccess | undefined) {
  return async (image: string, signal: AbortSignal) => {
    const found = await access()?.credentials(image, nobody, signal);
    return found?.credentials.map(({ auth }) => auth) ?? [];
  };
}

/** The part of the configuration that is about images. */
export function imagesOptions(config: AgentConfig, db: Database, log: Logger, clock: Clock): ImagesOptions {
  const { keelson } = config;
  return {
    db,
    stateDir: keelson.stateDir,
    log: log.child({ room: 'images' }),
    clock,
    parallelDownloads: keelson.parallelDownloads,
    downloadBytesInFlight:
      keelson.downloadBytesInFlight === undefined ? undefined : keelson.downloadBytesInFlight * 2 ** 20,
    keepBlobs: keelson.keepBlobs,
    fetchPolicy: {
      minBytesPerSecond: keelson.downloadMinSpeed * 1024,
      stallMs: keelson.downloadStallTimeout,
    },
    insecureRegistries: keelson.insecureRegistries,
    registryFolders: keelson.registryFolders,
    registryMirrorsOnly: keelson.registryMirrorsOnly,
  };
}

/**
 * The image room alone, for a command where no agent runs. Throws DATABASE_LOCKED where one does; the lock is held until
 * `close`. With `containerRuntimeEndpoint` it is the other runtime that is asked.
 */
export async function openImageVerbs(
  config: AgentConfig,
): Promise<{ readonly handlers: ImageHandlers; close(): Promise<void> }> {
  process.umask(0o022);
  const endpoint = config.imageServiceEndpoint ?? config.containerRuntimeEndpoint;
  if (endpoint !== undefined) {
    const { makeCriClient } = await import('../../runtime/cri/client.ts');
    const { images, close } = makeCriClient({ endpoint, clock: systemClock, log: makeLogger('warn') });
    return { handlers: imageVerbs({ images }), close: async () => close() };
  }
  const db = openDatabase(join(config.keelson.stateDir, 'state.db'));
  try {
    const images = await makeImages(imagesOptions(config, db, makeLogger('warn'), systemClock));
    return {
      handlers: imageVerbs({ images }),
      async close() {
        await images.close();
        db.close();
      },
    };
  } catch (error) {
    db.close();
    throw error;
  }
}
