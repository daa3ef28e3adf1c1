/** An image store in a temporary folder, with everything that it leaves behind taken away at the end. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type EmbeddedImages, type ImagesOptions, makeImages } from '../../images/service.ts';
import { mapOf } from '../../images/unpack/tar_map.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { type Database, openDatabase } from '../../runtime/host/database.ts';
import { makeLogger } from '../../runtime/host/log.ts';

export interface TestStore {
  readonly folder: string;
  readonly images: EmbeddedImages;
  readonly db: Database;
  close(): Promise<void>;
}

type Test = { after(fn: () => Promise<void>): void };

/** Where a layer is unpacked into the folder itself, its map lies beside it. */
export function temporaryFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  t.after(async () => {
    for (const path of [folder, mapOf(folder)]) rmSync(path, { recursive: true, force: true });
  });
  return folder;
}

export async function openImages(
  t: Test,
  options: Partial<ImagesOptions> & { folder?: string } = {},
): Promise<TestStore> {
  const folder = options.folder ?? mkdtempSync(join(tmpdir(), 'keelson-test-'));
  const db = openDatabase(join(folder, 'state.db'));
  const images = await makeImages({
    db,
    stateDir: folder,
    log: makeLogger('silent'),
    clock: systemClock,
    ...options,
  });
  let closing: Promise<void> | undefined;
  const close = () => {
    closing ??= images.close().then(() => db.close());
    return closing;
  };
  t.after(async () => {
    await close();
    rmSync(folder, { recursive: true, force: true });
  });
  return { folder, images, db, close };
}

/** Names below `layers/` and `staging/`. */
export function onDisk(folder: string): { layers: string[]; staging: string[] } {
  const folders = (name: string) => readdirSync(join(folder, name)).filter((file) => !file.endsWith('.map'));
  return { layers: folders('layers'), staging: readdirSync(join(folder, 'staging')) };
}
