/** From a request to its answer: paths, verbs, queries and bodies. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { DeleteOptions } from './deletion.ts';
import type { Objects } from './objects.ts';
import { type StoredObject, type Target, targetOf } from './resources.ts';
import { selector } from './selectors.ts';
import { badRequest, expired, methodNotAllowed, noSuchPath, StatusError } from './status.ts';
import type { Store } from './store.ts';
import type { Watches } from './watches.ts';

export interface Answer {
  readonly code: number;
  /** Text as it is, everything else as JSON. */
  readonly body: unknown;
}

export interface Answers {
  /** Undefined where the answer is a stream that has begun. Throws StatusError. */
  answer(request: IncomingMessage, response: ServerResponse, url: URL): Promise<Answer | undefined>;
  /** Forgets the lists of which somebody has read only some pages. */
  forgetPages(): void;
}

const largestBody = 3 << 20;

const reviews: Readonly<Record<string, (review: StoredObject) => object>> = {
  '/apis/authentication.k8s.io/v1/tokenreviews': (review) => ({
    ...review,
    status: { authenticated: true, user: { username: 'keelson-test', groups: ['system:authenticated'] } },
  }),
  '/apis/authorization.k8s.io/v1/subjectaccessreviews': (review) => ({
    ...review,
    status: { allowed: true },
  }),
};

export function makeAnswers(store: Store, objects: Objects, watches: Watches): Answers {
  const pages = new Map<string, StoredObject[]>();

  const list = (target: Target, query: URLSearchParams): object => {
    const { resource, namespace } = target;
    const limit = Number(query.get('limit') ?? 0);
    const token = query.get('continue');
    let items: StoredObject[];
    let version = String(store.version);
    let offset = 0;
    if (token !== null && token !== '') {
      const [at = '', from] = token.split('.');
      const kept = pages.get(at);
      if (kept === undefined)
        throw expired('The provided continue parameter is too old to display a consistent list result.');
      items = kept;
      version = at;
      offset = Number(from);
    } else {
      items = store.list({ resource, namespace, matches: selector(resource, query) });
      if (limit > 0 && items.length > limit) pages.set(version, items);
    }
    const end = limit > 0 ? Math.min(items.length, offset + limit) : items.length;
    const more =
      end < items.length ? { continue: `${version}.${end}`, remainingItemCount: items.length - end } : {};
    return {
      kind: `${resource.kind}List`,
      apiVersion: resource.group === '' ? 'v1' : `${resource.group}/v1`,
      metadata: { resourceVersion: version, ...more },
      items: items.slice(offset, end),
    };
  };

  const answer: Answers['answer'] = async (request, response, url) => {
    const { pathname, searchParams } = url;
    const method = request.method ?? 'GET';
    if (['/readyz', '/livez', '/healthz'].includes(pathname)) return { code: 200, body: 'ok' };
    if (pathname === '/version') {
      return {
        code: 200,
        body: { major: '1', minor: '37', gitVersion: 'v1.37.0-keelson-dev', platform: 'linux/amd64' },
      };
    }
    const review = reviews[pathname];
    if (review !== undefined && method === 'POST')
      return { code: 201, body: review(await readJson(request)) };
    const target = targetOf(pathname);
    if (target === undefined) throw noSuchPath();
    const { name, subresource, resource } = target;
    if (
      method === 'GET' &&
      subresource === undefined &&
      searchParams.get('watch') !== null &&
      searchParams.get('watch') !== 'false'
    ) {
      watches.open(target, searchParams, response);
      return undefined;
    }
    if (subresource !== undefined && subresource !== 'status') {
      if (method !== 'POST') throw noSuchPath();
      if (resource.kind === 'Pod' && subresource === 'binding') {
        objects.bind(target, await readJson(request));
        return {
          code: 201,
          body: { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Success', code: 201 },
        };
      }
      if (resource.kind === 'ServiceAccount' && subresource === 'token') {
        return { code: 201, body: objects.createToken(target, await readJson(request)) };
      }
      throw noSuchPath();
    }
    if (subresource === 'status' && !resource.status) throw noSuchPath();
    if (name === undefined) {
      if (method === 'GET') return { code: 200, body: list(target, searchParams) };
      if (resource.namespaced && target.namespace === undefined) throw methodNotAllowed();
      if (method === 'POST') return { code: 201, body: objects.create(target, await readJson(request)) };
      if (method === 'DELETE') {
        const deleteOptions = await readDeleteOptions(request, searchParams);
        const found = store.list({
          resource,
          namespace: target.namespace,
          matches: selector(resource, searchParams),
        });
        for (const object of found) objects.remove({ ...target, name: object.metadata.name }, deleteOptions);
        return {
          code: 200,
          body: { kind: `${resource.kind}List`, apiVersion: 'v1', metadata: {}, items: found },
        };
      }
      throw methodNotAllowed();
    }
    if (method === 'GET') return { code: 200, body: objects.get(target) };
    if (method === 'PUT') {
      const { object, created } = objects.replace(target, await readJson(request));
      return { code: created ? 201 : 200, body: object };
    }
    if (method === 'PATCH') {
      const body = await readJson(request);
      return { code: 200, body: objects.patch(target, request.headers['content-type'] ?? '', body) };
    }
    if (method === 'DELETE' && subresource === undefined) {
      const removed = objects.remove(target, await readDeleteOptions(request, searchParams));
      if (resource.kind === 'Pod' || resource.kind === 'Namespace') return { code: 200, body: removed };
      const details = {
        name,
        kind: resource.plural,
        group: resource.group || undefined,
        uid: removed.metadata.uid,
      };
      return {
        code: 200,
        body: { kind: 'Status', apiVersion: 'v1', metadata: {}, status: 'Success', details },
      };
    }
    throw methodNotAllowed();
  };

  return { answer, forgetPages: () => pages.clear() };
}

async function readJson(request: IncomingMessage): Promise<StoredObject> {
  const chunks: Buffer[] = [];
  let size = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    size += chunk.length;
    if (size > largestBody) throw new StatusError(413, 'RequestEntityTooLarge', 'limit is 3145728');
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString('utf8')) as StoredObject;
  } catch (error) {
    throw badRequest(`couldn't get version/kind; json parse error: ${(error as Error).message}`);
  }
}

async function readDeleteOptions(request: IncomingMessage, query: URLSearchParams): Promise<DeleteOptions> {
  const grace = query.get('gracePeriodSeconds');
  const hasBody =
    Number(request.headers['content-length'] ?? 0) > 0 || request.headers['transfer-encoding'] !== undefined;
  const body = hasBody ? ((await readJson(request)) as unknown as DeleteOptions) : {};
  return grace === null ? body : { ...body, gracePeriodSeconds: Number(grace) };
}
