/** Opens the node's HTTPS API and its health endpoint, as configured. */
import { join } from 'node:path';
import type { RuntimeService, RuntimeStats } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { StreamingServer } from '../../runtime/streaming/types.ts';
import { startHealthz } from '../api/healthz.ts';
import { containerForLogs } from '../api/log-container.ts';
import { type NodeApiOptions, startNodeApi } from '../api/server.ts';
import type { NodeStatsOptions } from '../api/stats/make.ts';
import type { AgentConfig } from '../config/load.ts';
import { printConfig } from '../config/print.ts';
import type { FactsReader } from '../node/facts.ts';
import type { PodManager } from '../pods/manager.ts';
import { lazyStats } from './stats.ts';

interface Parts extends Pick<NodeApiOptions, 'client' | 'probeMetrics' | 'metrics'> {
  readonly runtime: RuntimeService & RuntimeStats;
  readonly streaming: () => Promise<StreamingServer>;
  readonly facts: FactsReader;
  readonly csiUsage: NodeStatsOptions['csiUsage'];
  /** Addresses of the node, for a certificate that it signs itself. */
  readonly ips: readonly string[];
  readonly pods: PodManager;
  readonly clock: Clock;
  readonly log: Logger;
  after(close: () => Promise<void> | void): void;
}

export async function openApi(config: AgentConfig, parts: Parts): Promise<void> {
  const { keelson, nodeName } = config;
  const { ips, runtime, streaming, facts, pods, csiUsage, after, ...rest } = parts;
  const log = parts.log.child({ room: 'api' });
  const healthy = () => ({ ok: true, message: 'ok' });
  if (config.enableServer) {
    const api = await startNodeApi({
      ...rest,
      address: config.address,
      port: config.port,
      tls: {
        certFile: config.tlsCertFile,
        keyFile: config.tlsPrivateKeyFile,
        selfSignedFolder: join(keelson.kubeletDir, 'pki'),
        names: [nodeName],
        ips: [...new Set([...ips, '127.0.0.1', '::1'])],
      },
      clientCaFile: config.authentication.x509.clientCAFile,
      authentication: {
        anonymous: config.authentication.anonymous.enabled,
        webhook: config.authentication.webhook.enabled,
      },
      authorization: { mode: config.authorization.mode as 'AlwaysAllow' | 'Webhook' },
      nodeName,
      log,
      pods: () => pods.pods(),
      container: (namespace, name, container, previous) => logOf(pods, namespace, name, container, previous),
      healthy,
      streams: {
        runtime,
        handlers: async () => (await streaming()).handlers,
        runningUid: (uid) => pods.runningUid(uid),
      },
      checkpoints: { runtime, folder: join(keelson.kubeletDir, 'checkpoints') },
      stats: lazyStats({
        nodeName,
        runtime,
        facts,
        pods: () => pods.pods(),
        kubeletDir: keelson.kubeletDir,
        podLogsDir: config.podLogsDir,
        csiUsage,
        clock: parts.clock,
        log,
      }),
      configuration: () => printConfig(config),
      systemLogs: config.enableSystemLogHandler ? '/var/log' : undefined,
      debugging: config.enableDebuggingHandlers,
    });
    after(() => api.close());
  }
  if (config.healthzPort !== 0) {
    const healthz = await startHealthz({
      address: config.healthzBindAddress,
      port: config.healthzPort,
      healthy,
    });
    after(() => healthz.close());
  }
}

/** Throws what the API says of a pod or container that has no log. */
function logOf(pods: PodManager, namespace: string, name: string, container: string, previous: boolean) {
  const pod = pods
    .pods()
    .findLast(({ metadata }) => metadata?.name === name && metadata.namespace === namespace);
  containerForLogs(pod, name, container, previous);
  const found = pods.containerLog(namespace, name, container, previous);
  if (found !== undefined) return found;
  throw new KeelsonError('NOT_FOUND', `the log of container "${container}" in pod "${name}" is gone`);
}
