/** Opens the way to the apiserver, where there is one. */
import type { Clock } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { makeClient } from '../apiserver/client.ts';
import { makeEventRecorder } from '../apiserver/events.ts';
import { loadKubeconfig } from '../apiserver/kubeconfig.ts';
import type { AgentConfig } from '../config/load.ts';
import { kubernetesVersion, version } from '../version.ts';

/** No `kubeconfigFile`: no client, and events go nowhere. */
export async function openApiserver(
  config: AgentConfig,
  parts: {
    readonly kubeconfigFile: string | undefined;
    readonly clock: Clock;
    readonly log: Logger;
    after(close: () => Promise<void> | void): void;
  },
) {
  const { kubeconfigFile, clock, log, after } = parts;
  const client =
    kubeconfigFile === undefined
      ? undefined
      : makeClient({
          access: await loadKubeconfig(kubeconfigFile),
          clock,
          log: log.child({ room: 'apiserver' }),
          userAgent: `keelson/${version} (linux/${process.arch}) kubelet/${kubernetesVersion}`,
          clientQps: config.kubeAPIQPS,
          clientBurst: config.kubeAPIBurst,
        });
  if (client !== undefined) after(() => client.close());
  const events = makeEventRecorder({
    client,
    host: config.nodeName,
    clock,
    log: log.child({ room: 'events' }),
    qps: config.eventRecordQPS,
    burst: config.eventBurst,
  });
  after(() => events.close());
  return { client, events };
}
