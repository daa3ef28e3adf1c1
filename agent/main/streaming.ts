/** The server of streams into containers, loaded with the first stream. */
import type { RuntimeService } from '../../runtime/api.ts';
import type { Clock } from '../../runtime/host/clock.ts';
import type { Logger } from '../../runtime/host/log.ts';
import type { StreamingServer } from '../../runtime/streaming/types.ts';
import type { AgentConfig } from '../config/load.ts';

export function lazyStreaming(
  runtime: () => RuntimeService,
  config: AgentConfig,
  clock: Clock,
  log: Logger,
): { open(): Promise<StreamingServer>; close(): Promise<void> } {
  let opening: Promise<StreamingServer> | undefined;
  const load = async () => {
    const { makeStreaming } = await import('../../runtime/streaming/server.ts');
    const idleMs = config.streamingConnectionIdleTimeout;
    return makeStreaming({ runtime: runtime(), clock, log: log.child({ room: 'streaming' }), idleMs });
  };
  return {
    open() {
      opening ??= load();
      return opening;
    },
    close: async () => (await opening)?.close(),
  };
}
