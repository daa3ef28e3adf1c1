/** Where the node's pods come from: manifests in a folder and at a URL, and the apiserver. */
import type { Clock } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { type Reflector, reflect } from '../apiserver/reflector.ts';
import type { ApiserverClient, Pod } from '../apiserver/types.ts';
import type { AgentConfig } from '../config/load.ts';
import { watchManifests } from '../manifests/watch.ts';
import type { PodSink, PodSourceKind } from '../pods/types.ts';

interface Parts {
  readonly client: ApiserverClient | undefined;
  readonly sink: PodSink;
  readonly clock: Clock;
  readonly log: Logger;
  after(close: () => Promise<void> | void): void;
}

/** The sources that `openSources` will open. */
export function sourceKinds(config: AgentConfig, client: ApiserverClient | undefined): PodSourceKind[] {
  return [
    ...(client === undefined ? [] : (['api'] as const)),
    ...(config.staticPodPath === undefined ? [] : (['file'] as const)),
    ...(config.staticPodURL === undefined ? [] : (['url'] as const)),
  ];
}

/** Opens them all; returns the watch of the apiserver's pods, where there is an apiserver. */
export async function openSources(
  config: AgentConfig,
  { client, sink, clock, log, after }: Parts,
): Promise<Reflector | undefined> {
  const { nodeName } = config;
  const manifests = { nodeName, sink, log: log.child({ room: 'manifests' }), clock };
  if (config.staticPodPath !== undefined) {
    const folder = watchManifests({ ...manifests, folder: config.staticPodPath });
    after(() => folder.close());
  }
  if (config.staticPodURL !== undefined) {
    const { watchManifestUrl } = await import('../manifests/url.ts');
    const page = watchManifestUrl({
      ...manifests,
      url: config.staticPodURL,
      headers: config.staticPodURLHeader,
      everyMs: config.httpCheckFrequency,
    });
    after(() => page.close());
  }
  if (client === undefined) return undefined;
  const watch = reflect<Pod>({
    client,
    path: '/api/v1/pods',
    query: { fieldSelector: `spec.nodeName=${nodeName}` },
    onReplace: (list) => sink.replaceAll('api', list),
    onUpsert: (pod) => sink.upsert('api', pod),
    onDelete: ({ metadata }) => sink.remove('api', metadata!.uid!),
    clock,
    log: log.child({ room: 'apiserver' }),
  });
  after(() => watch.close());
  return watch;
}
