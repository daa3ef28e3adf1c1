/** Foreign layers: blobs that a registry need not have, since their descriptor names addresses for them (`urls`). */
import type { Readable } from 'node:stream';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { type Clients, clientSettings } from './clients.ts';
import { headerText, unavailable } from './connection.ts';
import { combine, type Failure } from './failures.ts';
import { registryDialTimeoutMs } from './hosts.ts';

const settings = clientSettings({}, registryDialTimeoutMs, undefined);
const mostRedirects = 5;

/**
 * The bytes of a blob from `offset` on as `LayerSource.blob`, from the first of `urls` that gives them. Only over
 * https, redirects included, and without any credentials. Throws what no address gave; `refusal`, why the registry
 * did not give it, decides the code.
 */
export async function foreignBlob(
  clients: Clients,
  urls: readonly string[],
  offset: number,
  refusal: KeelsonError,
  what: string,
  signal?: AbortSignal,
): Promise<{ body: Readable; offset: number }> {
  const failures: Failure[] = [];
  for (const url of urls) {
    const canParse = URL.canParse(url) && new URL(url).protocol === 'https:';
    const name = canParse ? shown(new URL(url)) : 'an address that is not https';
    try {
      if (!canParse) throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: not asked`);
      return await get(clients, new URL(url), offset, what, signal);
    } catch (error) {
      const ours = unavailable(error, what);
      if (!isError(ours, 'REGISTRY_UNAVAILABLE', 'IMAGE_NOT_FOUND')) throw ours;
      failures.push({ endpoint: { name, isRegistry: false }, error: ours });
    }
  }
  throw combine(what, [
    { endpoint: { name: 'the registry', isRegistry: true }, error: refusal },
    ...failures,
  ]);
}

async function get(clients: Clients, url: URL, offset: number, what: string, signal?: AbortSignal) {
  let target = url;
  for (let hop = 0; hop <= mostRedirects; hop++) {
    if (target.protocol !== 'https:') {
      throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: redirect away from https`);
    }
    target.username = '';
    target.password = '';
    const headers = offset > 0 ? { range: `bytes=${offset}-` } : undefined;
    const response = await clients.client(settings).request({ method: 'GET', url: target, headers, signal });
    const status = response.statusCode;
    if (status === 200) return { body: response.body, offset: 0 };
    const begins = /^bytes (\d+)-/.exec(headerText(response, 'content-range') ?? '')?.[1];
    if (status === 206 && offset > 0 && Number(begins) === offset) return { body: response.body, offset };
    const location = headerText(response, 'location');
    await response.body.dump();
    if (status >= 300 && status < 400 && location !== undefined && URL.canParse(location, target)) {
      target = new URL(location, target);
      continue;
    }
    const code = status === 404 ? 'IMAGE_NOT_FOUND' : 'REGISTRY_UNAVAILABLE';
    throw new KeelsonError(code, `${what}: ${shown(target)} answered ${status}`, { details: { status } });
  }
  throw new KeelsonError('REGISTRY_UNAVAILABLE', `${what}: more than ${mostRedirects} redirects`);
}

/** Without query and password, which may be secrets. */
function shown(url: URL): string {
  return `${url.origin}${url.pathname}`;
}
