/**
 * Static pods from a URL (staticPodURL), fetched every `everyMs`: a server tells nobody of changes. What is wrong or
 * cannot be had leaves the pods that run from it alone.
 */
import { type Clock, rfc3339Micro, sleep } from '../../runtime/host/clock.ts';
import { describe, KeelsonError } from '../../runtime/host/errors.ts';
import { type HttpClient, makeHttpClient } from '../../runtime/host/http.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { PodSink } from '../pods/types.ts';
import { decodeManifests } from './decode.ts';

export interface ManifestUrlOptions {
  /** http: or https:. */
  readonly url: string;
  /** staticPodURLHeader: may hold secrets, so they are never logged. */
  readonly headers?: Readonly<Record<string, readonly string[]>>;
  /** httpCheckFrequency, milliseconds. */
  readonly everyMs: number;
  readonly nodeName: string;
  readonly sink: PodSink;
  readonly log: Logger;
  readonly clock: Clock;
  /** Default: a client of its own. */
  readonly http?: HttpClient;
}

export interface ManifestUrl {
  close(): Promise<void>;
}

/** kubelet's figures. */
const fetchMs = 10_000;
const maxBytes = 10 << 20;
const mostRedirects = 10;
const loudFailures = 3;

export function watchManifestUrl(options: ManifestUrlOptions): ManifestUrl {
  const { nodeName, sink, log, clock, everyMs } = options;
  const http = options.http ?? makeHttpClient({ connections: 1, connectTimeoutMs: fetchMs });
  const controller = new AbortController();
  const { signal } = controller;
  const headers = Object.fromEntries(
    Object.entries(options.headers ?? {}).map(([name, values]) => [name, values.join(', ')]),
  );
  // What a URL says besides the place may be a password.
  const shown = withoutSecrets(options.url);
  let last: string | undefined;
  let failures = 0;

  async function get(): Promise<string> {
    const late = AbortSignal.any([signal, AbortSignal.timeout(fetchMs)]);
    let url = new URL(options.url);
    for (let count = 0; count <= mostRedirects; count++) {
      // The headers may name us to the server that they are for, and to no other.
      const own = url.origin === new URL(options.url).origin ? headers : {};
      const {
        statusCode,
        headers: answer,
        body,
      } = await http.request({ method: 'GET', url, headers: own, signal: late });
      const { location } = answer;
      if (statusCode >= 300 && statusCode < 400 && typeof location === 'string') {
        await body.dump();
        url = new URL(location, url);
        continue;
      }
      if (statusCode !== 200) {
        await body.dump();
        throw new KeelsonError('UNAVAILABLE', `${shown} answered with status ${statusCode}`);
      }
      const pieces: Buffer[] = [];
      let length = 0;
      for await (const piece of body as AsyncIterable<Buffer>) {
        length += piece.length;
        if (length > maxBytes)
          throw new KeelsonError('POD_INVALID', `${shown} has more than ${maxBytes} bytes`);
        pieces.push(piece);
      }
      return Buffer.concat(pieces).toString('utf8');
    }
    throw new KeelsonError('UNAVAILABLE', `${shown} redirects more than ${mostRedirects} times`);
  }

  async function look(): Promise<void> {
    const text = await get();
    if (text === '') {
      // So that others need not wait for this source.
      if (last === undefined) sink.replaceAll('url', []);
      throw new KeelsonError('POD_INVALID', 'it is empty');
    }
    if (text === last) return;
    const seen = rfc3339Micro(clock.now());
    const pods = await decodeManifests(text, { url: options.url, nodeName, seen });
    if (signal.aborted) return;
    last = text;
    sink.replaceAll('url', pods);
  }

  async function run(): Promise<void> {
    while (!signal.aborted) {
      try {
        await look();
        if (failures > 0) log.info({ url: shown }, 'static pods can be fetched again');
        failures = 0;
      } catch (error) {
        if (signal.aborted) return;
        // The first few are enough to get the point across.
        const say = failures++ < loudFailures ? log.error : log.debug;
        say.call(
          log,
          { err: error, url: shown },
          `static pods from ${shown}: ${describe(error)}; those that run are kept`,
        );
      }
      await sleep(clock, everyMs, signal).catch(() => {});
    }
  }

  const running = run();
  return {
    async close() {
      controller.abort(new KeelsonError('ABORTED', 'static pods are not fetched any more'));
      await running;
      if (options.http === undefined) await http.destroy();
    },
  };
}

function withoutSecrets(url: string): string {
  const { origin, pathname } = new URL(url);
  return `${origin}${pathname}`;
}
