/** Who we are to the apiserver: files that may change under us, and exec credential plugins. */
import { createPrivateKey, X509Certificate } from 'node:crypto';
import { readFile, stat } from 'node:fs/promises';
import type { Clock } from '../../runtime/host/clock.ts';
import { abortError, describe, errnoOf, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import type { TlsOptions } from '../../runtime/host/http.ts';

/** `tls` is the same object as long as nothing in it changed. */
export interface Credentials {
  readonly tls: TlsOptions;
  /** The Authorization header. Secret. */
  readonly authorization?: string;
}

export interface ClusterAccess {
  /** May have a path, which then goes before every path of the API. */
  readonly server: URL;
  /** Current credentials. Throws CONFIG_INVALID, DEADLINE_EXCEEDED or ABORTED. */
  credentials(signal?: AbortSignal): Promise<Credentials>;
  /** Told when the server answered 401: what can be had anew will be, at the next `credentials`. */
  refused(): void;
}

/** A value that is given in place, or read from a file that may be replaced. */
export interface Source {
  /** For messages: `users[0].user.tokenFile` and the like, with the kubeconfig's name. */
  readonly field: string;
  readonly data?: string;
  readonly file?: string;
}

/** `user.exec` of a kubeconfig (client.authentication.k8s.io), checked. */
export interface ExecPlugin {
  readonly field: string;
  readonly apiVersion: string;
  readonly command: string;
  readonly args: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  readonly installHint?: string;
  /** `spec.cluster` of the ExecCredential, where the kubeconfig says provideClusterInfo. */
  readonly cluster?: object;
}

export interface AccessOptions {
  readonly server: URL;
  readonly serverName?: string;
  readonly insecure: boolean;
  readonly ca?: Source;
  readonly cert?: Source;
  readonly key?: Source;
  readonly token?: Source;
  readonly basic?: { readonly username: string; readonly password: string };
  readonly exec?: ExecPlugin;
  readonly clock: Clock;
}

/** How often files are looked at; client-go takes a minute for tokens, and certificates change rarely. */
const lookAgainMs = 10_000;
const execDeadlineMs = 60_000;

interface Plugged {
  readonly token?: string;
  readonly cert?: string;
  readonly key?: string;
  readonly expiresAt: number;
}

/** Reads everything once, so that what is wrong is said at the start. Throws CONFIG_INVALID. */
export async function makeAccess(options: AccessOptions): Promise<ClusterAccess> {
  const { clock, exec: plugin } = options;
  const sources = [options.ca, options.cert, options.key, options.token].map((source) =>
    source === undefined ? undefined : watchedSource(source),
  );
  let plugged: Plugged | undefined;
  let running: Promise<Plugged> | undefined;
  let current: Credentials | undefined;
  let usedPlugged: Plugged | undefined;
  let lookedAt = Number.NEGATIVE_INFINITY;
  let looking: Promise<boolean> | undefined;

  const look = async (): Promise<boolean> => {
    const changes = await Promise.all(sources.map((source) => source?.refresh()));
    return changes.includes(true);
  };
  const build = (): Credentials => {
    const [ca, cert, key, token] = sources.map((source) => source?.value());
    const tls: TlsOptions = {
      ca,
      cert: plugged?.cert ?? cert,
      key: plugged?.key ?? key,
      serverName: options.serverName,
      insecure: options.insecure,
    };
    checkTls(options, tls);
    const bearer = plugged?.token ?? token;
    const authorization =
      bearer !== undefined
        ? `Bearer ${bearer}`
        : options.basic !== undefined
          ? `Basic ${Buffer.from(`${options.basic.username}:${options.basic.password}`).toString('base64')}`
          : undefined;
    const same = current !== undefined && tlsEqual(current.tls, tls);
    return { tls: same ? current!.tls : tls, authorization };
  };
  const needsFiles = sources.some((source) => source?.file !== undefined);

  await look();
  lookedAt = clock.monotonic();
  if (plugin === undefined) current = build();

  return {
    server: options.server,
    async credentials(signal) {
      let changed = false;
      if (needsFiles && clock.monotonic() - lookedAt >= lookAgainMs) {
        lookedAt = clock.monotonic();
        looking ??= look().finally(() => {
          looking = undefined;
        });
        // A file that is being replaced keeps the credentials that worked.
        changed = await looking.catch(() => false);
      }
      if (plugin !== undefined && (plugged === undefined || clock.now() >= plugged.expiresAt)) {
        running ??= runPlugin(plugin, clock).finally(() => {
          running = undefined;
        });
        plugged = await abortable(running, signal, `credential plugin ${plugin.command}`);
      }
      if (current === undefined || changed || plugged !== usedPlugged) {
        try {
          current = build();
          usedPlugged = plugged;
        } catch (error) {
          // Certificate and key are replaced one after the other: between the two they do not fit.
          if (current === undefined) throw error;
          lookedAt = Number.NEGATIVE_INFINITY;
          for (const source of sources) source?.forget();
        }
      }
      return current;
    },
    refused() {
      plugged = undefined;
      lookedAt = Number.NEGATIVE_INFINITY;
    },
  };
}

interface WatchedSource {
  readonly file: string | undefined;
  /** Reads the file when it changed; true when the value is another one. Throws CONFIG_INVALID. */
  refresh(): Promise<boolean>;
  value(): string | undefined;
  /** The next `refresh` reads in any case. */
  forget(): void;
}

function watchedSource(source: Source): WatchedSource {
  let value = source.data;
  let seen = '';
  return {
    file: source.file,
    value: () => value,
    forget: () => {
      seen = '';
    },
    async refresh() {
      if (source.file === undefined) return false;
      try {
        const { mtimeMs, size, ino } = await stat(source.file);
        const mark = `${mtimeMs} ${size} ${ino}`;
        if (mark === seen) return false;
        const text = (await readFile(source.file, 'utf8')).trim();
        if (text === '') throw new KeelsonError('CONFIG_INVALID', `${source.field}: ${source.file} is empty`);
        seen = mark;
        const changed = text !== value;
        value = text;
        return changed;
      } catch (error) {
        if (error instanceof KeelsonError) throw error;
        const missing = errnoOf(error) === 'ENOENT';
        throw new KeelsonError(
          'CONFIG_INVALID',
          `${source.field}: ${missing ? `there is no file ${source.file}` : `cannot read ${source.file}: ${describe(error)}`}`,
          { cause: error },
        );
      }
    },
  };
}

/** OpenSSL's own words for a bad certificate or key help little without the field. Throws CONFIG_INVALID. */
function checkTls(options: AccessOptions, tls: TlsOptions): void {
  const pluginField = options.exec?.field ?? 'user';
  const must = <T>(field: string, what: string, body: () => T): T => {
    try {
      return body();
    } catch (error) {
      throw new KeelsonError('CONFIG_INVALID', `${field}: ${what}`, { cause: error });
    }
  };
  const notCertificate = 'is not a PEM certificate';
  if (tls.ca !== undefined) {
    must(options.ca?.field ?? 'certificate-authority', notCertificate, () => new X509Certificate(tls.ca!));
  }
  if (tls.cert === undefined || tls.key === undefined) return;
  const cert = must(options.cert?.field ?? pluginField, notCertificate, () => new X509Certificate(tls.cert!));
  const keyField = options.key?.field ?? pluginField;
  const key = must(keyField, 'is not a PEM key', () => createPrivateKey(tls.key!));
  if (!cert.checkPrivateKey(key)) {
    throw new KeelsonError('CONFIG_INVALID', `${keyField}: is not the key of the client certificate`);
  }
}

function tlsEqual(a: TlsOptions, b: TlsOptions): boolean {
  return a.ca === b.ca && a.cert === b.cert && a.key === b.key;
}

/** Runs the plugin (client-authentication v1, ExecCredential in and out). Its output is secret: it is never quoted. */
async function runPlugin(plugin: ExecPlugin, clock: Clock): Promise<Plugged> {
  const { field, command } = plugin;
  const spec = { interactive: false, ...(plugin.cluster === undefined ? {} : { cluster: plugin.cluster }) };
  const inherited = Object.fromEntries(
    Object.entries(process.env).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
  let output: string;
  try {
    const { stdout } = await exec(command, plugin.args, {
      env: {
        ...inherited,
        ...plugin.env,
        KUBERNETES_EXEC_INFO: JSON.stringify({ apiVersion: plugin.apiVersion, kind: 'ExecCredential', spec }),
      },
      deadlineMs: execDeadlineMs,
    });
    output = stdout.toString('utf8');
  } catch (error) {
    if (isError(error, 'ABORTED', 'DEADLINE_EXCEEDED')) throw error;
    const missing = isError(error, 'EXEC_NOT_FOUND');
    const code = error instanceof KeelsonError ? error.details['code'] : undefined;
    throw new KeelsonError(
      'CONFIG_INVALID',
      `${field}: the credential plugin ${command} ${missing ? 'does not exist' : `failed${code === undefined ? '' : ` with exit code ${code}`}`}`,
      { hint: plugin.installHint ?? `run ${command} by hand as the same user to see why` },
    );
  }
  const bad = (what: string) =>
    new KeelsonError('CONFIG_INVALID', `${field}: the credential plugin ${command} ${what}`);
  let credential: { apiVersion?: unknown; kind?: unknown; status?: Record<string, unknown> };
  try {
    credential = JSON.parse(output);
  } catch {
    throw bad('wrote no JSON');
  }
  if (credential?.kind !== 'ExecCredential' || credential.apiVersion !== plugin.apiVersion) {
    throw bad(`wrote no ExecCredential of ${plugin.apiVersion}`);
  }
  const text = (name: string): string | undefined => {
    const found = credential.status?.[name];
    return typeof found === 'string' && found !== '' ? found : undefined;
  };
  const token = text('token');
  const cert = text('clientCertificateData');
  const key = text('clientKeyData');
  if (token === undefined && cert === undefined) throw bad('gave neither a token nor a client certificate');
  if ((cert === undefined) !== (key === undefined)) throw bad('gave a certificate without its key');
  const expires = text('expirationTimestamp');
  const expiresAt = expires === undefined ? Number.POSITIVE_INFINITY : Date.parse(expires);
  if (Number.isNaN(expiresAt)) throw bad('gave an expirationTimestamp that is no time');
  if (expiresAt <= clock.now()) throw bad('gave credentials that have already expired');
  return { token, cert, key, expiresAt };
}

/** `signal` ends this wait, not the work that others share. */
export function abortable<T>(work: Promise<T>, signal: AbortSignal | undefined, what: string): Promise<T> {
  if (signal === undefined) return work;
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(abortError(signal, what));
    signal.addEventListener('abort', onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort));
  });
}
