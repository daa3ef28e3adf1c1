/** What the node's API tells: one answer for each route that only reads. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { answerJson, answerMethodNotAllowed, answerText } from '../answer.ts';
import { answerHealth } from '../healthz.ts';
import { parseLogOptions } from '../log-options.ts';
import type { Route, Target } from '../request.ts';
import type { NodeApiOptions } from '../server.ts';
import { sendLog } from './container_log.ts';

/** Throws what the request is refused with. */
export async function serveRead(
  options: NodeApiOptions,
  request: IncomingMessage,
  response: ServerResponse,
  route: Exclude<Route, { readonly kind: 'streaming' | 'checkpoint' }>,
  { query }: Target,
  signal: AbortSignal,
): Promise<void> {
  if (route.kind === 'unknown') throw notFound();
  if (request.method !== 'GET' && !(route.kind === 'summary' && request.method === 'POST')) {
    return answerMethodNotAllowed(response, 'GET');
  }
  switch (route.kind) {
    case 'healthz':
      if (!answerHealth(route.check, options.healthy(), response)) throw notFound();
      return;
    case 'pods':
      return answerJson(response, {
        kind: 'PodList',
        apiVersion: 'v1',
        metadata: {},
        items: options.pods(),
      });
    case 'runningpods': {
      if (options.streams === undefined) throw notFound();
      const { runningPods } = await import('./running_pods.ts');
      return answerJson(response, await runningPods(options.streams.runtime));
    }
    case 'configz':
      if (options.configuration === undefined) throw notFound();
      return answerJson(response, { kubeletconfig: options.configuration() });
    case 'summary': {
      if (options.stats === undefined) throw notFound();
      const only = query.getAll('only_cpu_and_memory');
      const { summary } = await options.stats();
      return answerJson(response, await summary(only.length === 1 && only[0] === 'true', signal));
    }
    case 'metrics':
      return sendMetrics(options, route.page, response, signal);
    case 'logs': {
      if (options.systemLogs === undefined) return answerText(response, 405, 'logs endpoint is disabled.\n');
      const { sendSystemLog } = await import('./system_logs.ts');
      return sendSystemLog(response, options.systemLogs, route, signal);
    }
    case 'containerLogs': {
      const wanted = parseLogOptions(query, options.clock.now());
      const log = await options.container(route.namespace, route.pod, route.container, wanted.previous);
      return sendLog(response, log, wanted, signal);
    }
  }
}

async function sendMetrics(
  options: NodeApiOptions,
  page: Extract<Route, { readonly kind: 'metrics' }>['page'],
  response: ServerResponse,
  signal: AbortSignal,
): Promise<void> {
  if (page === 'resource' || page === 'cadvisor') {
    if (options.stats === undefined) throw notFound();
    const stats = await options.stats();
    const text = await (page === 'resource' ? stats.resourceMetrics(signal) : stats.podMetrics(signal));
    response.writeHead(200, { 'content-type': 'text/plain; version=0.0.4; charset=utf-8' });
    return void response.end(text);
  }
  const { contentType, metricsText } = await import('../../metrics/text.ts');
  const sources = { '': options.metrics, probes: options.probeMetrics, slis: undefined }[page] ?? [];
  const text = await metricsText(sources);
  response.writeHead(200, { 'content-type': contentType });
  response.end(text);
}

function notFound(): KeelsonError {
  return new KeelsonError('NOT_FOUND', '404 page not found');
}
