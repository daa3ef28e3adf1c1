/** An image store in a temporary folder, with everything that it leaves behind taken away at the end. */
import { mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeClients } from '../../images/registry/clients.ts';
import { makeHealth } from '../../images/registry/health.ts';
import { makeHosts } from '../../images/registry/hosts.ts';
import type { RegistryOptions } from '../../images/registry/repository.ts';
import { type EmbeddedImages, type ImagesOptions, makeImages } from '../../images/service.ts';
import { mapOf } from '../../images/unpack/tar_map.ts';
import { type Clock, systemClock } from '../../runtime/host/clock.ts';
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
    registryFolders: [], // Not what this machine has.
    environment: {},
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

/** A store that reads `hosts.toml` files, and where to write them. */
export async function openSite(
  t: Test,
  options: Partial<ImagesOptions> & { folder?: string } = {},
): Promise<TestStore & { readonly certs: string; configure(domain: string, hostsToml: string): void }> {
  const certs = temporaryFolder(t);
  const store = await openImages(t, { registryFolders: [certs], ...options });
  const configure = (domain: string, hostsToml: string) => {
    mkdirSync(join(certs, domain), { recursive: true });
    writeFileSync(join(certs, domain, 'hosts.toml'), hostsToml);
  };
  return { certs, configure, ...store };
}

/** The table of a registry that speaks plain http, as a mirror in a `hosts.toml`. */
export function mirrorTable(mirror: { readonly host: string }, fields = ''): string {
  return `[host."http://${mirror.host}"]\n${fields}\n`;
}

/** What pulls share about registries, for a test without a store. No configuration of this machine counts. */
export function openRegistries(t: Test, clock: Clock = systemClock): RegistryOptions {
  const clients = makeClients(() => undefined);
  t.after(clients.close);
  return {
    clients,
    clock,
    hosts: makeHosts({ folders: [], insecureRegistries: [], mirrorsOnly: false }),
    health: makeHealth(clock),
    log: makeLogger('silent'),
  };
}

/** Names below `layers/` and `staging/`. */
export function onDisk(folder: string): { layers: string[]; staging: string[] } {
  const folders = (name: string) => readdirSync(join(folder, name)).filter((file) => !file.endsWith('.map'));
  return { layers: folders('layers'), staging: readdirSync(join(folder, 'staging')) };
}
