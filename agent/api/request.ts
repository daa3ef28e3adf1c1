/** What a request asks for: its path as a route, and what must be allowed for it. Pure. */
import { KeelsonError } from '../../runtime/host/errors.ts';

export type StreamingVerb = 'exec' | 'attach' | 'run' | 'portForward';

/** A request for exec, attach, run or port-forward. */
export interface StreamRoute {
  readonly kind: 'streaming';
  readonly verb: StreamingVerb;
  readonly namespace: string;
  readonly pod: string;
  readonly uid?: string;
  /** Empty for portForward. */
  readonly container: string;
}

/** `` is the agent itself. */
export type MetricsPage = '' | 'resource' | 'cadvisor' | 'probes' | 'slis';

export type Route =
  | { readonly kind: 'healthz'; readonly check: string }
  | { readonly kind: 'pods' }
  | { readonly kind: 'runningpods' }
  | { readonly kind: 'configz' }
  | { readonly kind: 'summary' }
  | { readonly kind: 'metrics'; readonly page: MetricsPage }
  /** `path` below the folder of the system's logs. */
  | { readonly kind: 'logs'; readonly path: readonly string[]; readonly folder: boolean }
  | {
      readonly kind: 'containerLogs';
      readonly namespace: string;
      readonly pod: string;
      readonly container: string;
    }
  | {
      readonly kind: 'checkpoint';
      readonly namespace: string;
      readonly pod: string;
      readonly container: string;
    }
  | StreamRoute
  | { readonly kind: 'unknown' };

export interface Target {
  /** Decoded segments of the path, none of them empty. */
  readonly segments: readonly string[];
  /** The path ended with a slash. */
  readonly folder: boolean;
  readonly query: URLSearchParams;
}

/** What a SubjectAccessReview is asked about: `verb` on `nodes/<subresource>`. */
export interface Attributes {
  readonly verb: string;
  readonly subresource: string;
}

/**
 * Takes a request target apart. One reading of the path serves authorization and routing alike, so that they cannot
 * differ; what could be read in two ways (`//`, `..`, an encoded slash) is refused. Throws INVALID_ARGUMENT.
 */
export function parseTarget(target: string): Target {
  const end = target.indexOf('?');
  const path = end < 0 ? target : target.slice(0, end);
  const refused = () => new KeelsonError('INVALID_ARGUMENT', 'the path of the request is not valid');
  if (!path.startsWith('/')) throw refused();
  const parts = path.slice(1).split('/');
  if (parts.at(-1) === '') parts.pop();
  const segments = parts.map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      throw refused();
    }
  });
  if (segments.some((segment) => /^\.{0,2}$|[/\\\0]/.test(segment))) throw refused();
  return {
    segments,
    folder: path.endsWith('/'),
    query: new URLSearchParams(end < 0 ? '' : target.slice(end + 1)),
  };
}

const streamingVerbs: readonly string[] = ['exec', 'attach', 'run', 'portForward'] satisfies StreamingVerb[];

const metricsPages: readonly string[] = [
  '',
  'resource',
  'cadvisor',
  'probes',
  'slis',
] satisfies MetricsPage[];

/** The route of a path; `unknown` for what the node does not serve. */
export function routeOf({ segments, folder }: Target): Route {
  const [first = '', ...rest] = segments;
  if (first === 'healthz' && rest.length <= 1) return { kind: 'healthz', check: rest[0] ?? '' };
  if (first === 'pods' && rest.length === 0) return { kind: 'pods' };
  if (first === 'runningpods' && rest.length === 0) return { kind: 'runningpods' };
  if (first === 'configz' && rest.length === 0) return { kind: 'configz' };
  if (first === 'stats' && rest.length === 1 && rest[0] === 'summary') return { kind: 'summary' };
  if (first === 'metrics' && rest.length <= 1 && metricsPages.includes(rest[0] ?? '')) {
    return { kind: 'metrics', page: (rest[0] ?? '') as MetricsPage };
  }
  if (first === 'logs') return { kind: 'logs', path: rest, folder };
  const [namespace, pod, third, fourth] = rest;
  if (namespace === undefined || pod === undefined) return { kind: 'unknown' };
  if (first === 'containerLogs' && rest.length === 3) {
    return { kind: 'containerLogs', namespace, pod, container: third! };
  }
  if (first === 'checkpoint' && rest.length === 3) {
    return { kind: 'checkpoint', namespace, pod, container: third! };
  }
  if (!streamingVerbs.includes(first)) return { kind: 'unknown' };
  const verb = first as StreamingVerb;
  if (verb === 'portForward') {
    return rest.length <= 3
      ? { kind: 'streaming', verb, namespace, pod, uid: third, container: '' }
      : { kind: 'unknown' };
  }
  if (rest.length === 3) return { kind: 'streaming', verb, namespace, pod, container: third! };
  if (rest.length === 4) return { kind: 'streaming', verb, namespace, pod, uid: third, container: fourth! };
  return { kind: 'unknown' };
}

const verbs: Readonly<Record<string, string>> = {
  POST: 'create',
  GET: 'get',
  PUT: 'update',
  PATCH: 'patch',
  DELETE: 'delete',
};

/** Subresources by the first segment of the path, tried in their order (KEP-2862, fine-grained kubelet authorization). */
const subresources: Readonly<Record<string, readonly string[]>> = {
  pods: ['pods', 'proxy'],
  allocatedPods: ['pods', 'proxy'],
  runningpods: ['pods', 'proxy'],
  healthz: ['healthz', 'proxy'],
  configz: ['configz', 'proxy'],
  stats: ['stats'],
  metrics: ['metrics'],
  logs: ['log'],
  checkpoint: ['checkpoint'],
  statusz: ['statusz'],
  flagz: ['configz'],
};

/**
 * What the user must be allowed, any one of the list. Running things in containers counts as `create` whatever the
 * HTTP method: WebSockets begin with GET, and whoever may only read must not get a shell.
 */
export function attributesOf(method: string, { segments }: Target): readonly Attributes[] {
  const first = segments[0] ?? '';
  const verb = streamingVerbs.includes(first) ? 'create' : (verbs[method] ?? '');
  const wanted = Object.hasOwn(subresources, first) ? subresources[first]! : ['proxy'];
  return wanted.map((subresource) => ({ verb, subresource }));
}
