/** What the node's API shows to its callers, and whose certificates it believes: kept up to date while it runs. */
import { type FSWatcher, watch } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, dirname } from 'node:path';
import type { Clock } from '../../runtime/host/clock.ts';
import { describe, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { selfSignedIn } from './certificate.ts';

export interface TlsFiles {
  /** PEM; both or neither. Without them a self-signed certificate is made. */
  readonly certFile?: string;
  readonly keyFile?: string;
  /** Where the self-signed certificate is kept. */
  readonly selfSignedFolder: string;
  /** What it is for. */
  readonly names: readonly string[];
  readonly ips: readonly string[];
}

export interface TlsContext {
  readonly cert: string;
  readonly key: string;
  /** Authorities of clients. */
  readonly ca?: string;
}

export interface TlsSource {
  load(): Promise<TlsContext>;
  /** Calls `apply` after files changed, and when a self-signed certificate was renewed. */
  watch(apply: (context: TlsContext) => void): void;
  close(): void;
}

const renewalCheckMs = 86_400_000;
/** Certificate and key are replaced one after the other. */
const settleMs = 200;

export function makeTlsSource(options: {
  readonly tls: TlsFiles;
  readonly clientCaFile?: string;
  readonly clock: Clock;
  readonly log: Logger;
}): TlsSource {
  const { tls, clientCaFile, clock, log } = options;
  const { certFile, keyFile } = tls;
  const watchers: FSWatcher[] = [];
  let cancelTimer = () => {};
  let cancelRenewal = () => {};
  let closed = false;

  const read = async (file: string, what: string): Promise<string> => {
    try {
      return await readFile(file, 'utf8');
    } catch (error) {
      throw new KeelsonError(
        'CONFIG_INVALID',
        `cannot read the ${what} ${file}: ${(error as Error).message}`,
        {
          cause: error,
        },
      );
    }
  };
  const load = async (): Promise<TlsContext> => {
    const ca =
      clientCaFile === undefined ? undefined : await read(clientCaFile, 'authentication.x509.clientCAFile');
    if (certFile !== undefined && keyFile !== undefined) {
      const [cert, key] = await Promise.all([
        read(certFile, 'tlsCertFile'),
        read(keyFile, 'tlsPrivateKeyFile'),
      ]);
      return { cert, key, ca };
    }
    const made = await selfSignedIn(tls.selfSignedFolder, {
      names: tls.names,
      ips: tls.ips,
      now: clock.now(),
    });
    return { ...made, ca };
  };

  return {
    load,
    watch(apply) {
      const reload = async () => {
        try {
          const context = await load();
          if (!closed) apply(context);
        } catch (error) {
          log.warn({ err: error }, `the certificates of the node's API stay as they are: ${describe(error)}`);
        }
      };
      const soon = () => {
        cancelTimer();
        cancelTimer = clock.after(settleMs, () => void reload());
      };
      for (const file of [certFile, keyFile, clientCaFile]) {
        if (file === undefined) continue;
        try {
          // The folder: files are replaced by renaming, and Kubernetes volumes by switching the link `..data`.
          const watcher = watch(dirname(file), { persistent: false }, (_event, name) => {
            if (name === null || name === basename(file) || name === '..data') soon();
          });
          watcher.on('error', () => {});
          watchers.push(watcher);
        } catch (error) {
          log.warn({ err: error }, `changes of ${file} will be seen only after a restart`);
        }
      }
      if (certFile === undefined) {
        const again = () => {
          cancelRenewal = clock.after(renewalCheckMs, () => {
            void reload();
            again();
          });
        };
        again();
      }
    },
    close() {
      closed = true;
      cancelTimer();
      cancelRenewal();
      for (const watcher of watchers) watcher.close();
    },
  };
}
