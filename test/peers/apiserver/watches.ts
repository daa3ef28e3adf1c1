/** Watches: streams of events with bookmarks, and the ways in which a test can end them. */
import type { ServerResponse } from 'node:http';
import type { StoredObject, Target } from './resources.ts';
import { selector } from './selectors.ts';
import { badRequest, StatusError } from './status.ts';
import type { Store } from './store.ts';

export interface Watches {
  /** Answers a watch request. Throws 400 before anything is written. */
  open(target: Target, query: URLSearchParams, response: ServerResponse): void;
  /** Watches that are open. */
  readonly count: number;
  /** Gives each open response to `act`, which may end or destroy it. */
  each(act: (response: ServerResponse) => void): void;
}

export function makeWatches(store: Store, bookmarkMs: number): Watches {
  const responses = new Set<ServerResponse>();
  const open = (target: Target, query: URLSearchParams, response: ServerResponse): void => {
    const { resource, namespace } = target;
    const matches =
      target.name === undefined
        ? selector(resource, query)
        : (object: StoredObject) => object.metadata.name === target.name;
    const scope = { resource, namespace, matches };
    const asked = query.get('resourceVersion') ?? '';
    if (!/^\d*$/.test(asked)) throw badRequest(`Invalid value: "${asked}": invalid resource version`);
    const bookmarks = query.get('allowWatchBookmarks') === 'true';
    const send = (type: string, object: object) => response.write(`${JSON.stringify({ type, object })}\n`);
    const bookmark = (annotations?: Record<string, string>) =>
      send('BOOKMARK', {
        kind: resource.kind,
        apiVersion: resource.group === '' ? 'v1' : `${resource.group}/v1`,
        metadata: { resourceVersion: String(store.version), creationTimestamp: null, annotations },
      });
    response.writeHead(200, { 'content-type': 'application/json' });
    response.flushHeaders();

    let from = Number(asked);
    if (asked === '' || asked === '0' || query.get('sendInitialEvents') === 'true') {
      for (const object of store.list(scope)) send('ADDED', object);
      from = store.version;
      if (query.get('sendInitialEvents') === 'true' && bookmarks)
        bookmark({ 'k8s.io/initial-events-end': 'true' });
    }
    let forget: () => void;
    try {
      forget = store.watch(scope, from, ({ type, object }) => send(type, object));
    } catch (error) {
      if (!(error instanceof StatusError)) throw error;
      // As the real one: the stream begins, and its one event is the error.
      response.end(`${JSON.stringify({ type: 'ERROR', object: error })}\n`);
      return;
    }
    const timer = bookmarks ? setInterval(() => bookmark(), bookmarkMs) : undefined;
    const seconds = Number(query.get('timeoutSeconds') ?? 0) || 1800;
    const ending = setTimeout(() => response.end(), seconds * 1000);
    responses.add(response);
    response.once('close', () => {
      forget();
      clearInterval(timer);
      clearTimeout(ending);
      responses.delete(response);
    });
  };

  return {
    open,
    get count() {
      return responses.size;
    },
    each(act) {
      for (const response of [...responses]) act(response);
    },
  };
}
