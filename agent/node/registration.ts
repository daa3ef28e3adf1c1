/** The Node object: making it, and putting right what an existing one lacks. */

import type { Logger } from '../../runtime/host/log.ts';
import { apiStatus } from '../apiserver/client.ts';
import type { ApiserverClient, Node } from '../apiserver/types.ts';
import type { NodeFacts } from './facts.ts';
import { hostnameOf } from './status.ts';
import type { NodeConfig, NodeStatusNow } from './types.ts';

/** Volumes are attached by the controller manager: what kubelet's enableControllerAttachDetach says. */
const attachDetach = 'volumes.kubernetes.io/controller-managed-attach-detach';

/** The Node as it is to be created. Pure. */
export function nodeObject(facts: NodeFacts, config: NodeConfig, status: NodeStatusNow): Node {
  const { architecture } = facts;
  return {
    apiVersion: 'v1',
    kind: 'Node',
    metadata: {
      name: config.nodeName,
      labels: {
        'kubernetes.io/hostname': hostnameOf(config),
        'kubernetes.io/os': 'linux',
        'kubernetes.io/arch': architecture,
        'beta.kubernetes.io/os': 'linux',
        'beta.kubernetes.io/arch': architecture,
        ...config.keelson.nodeLabels,
      },
      annotations: { [attachDetach]: 'true' },
    },
    spec: {
      ...(config.providerID ? { providerID: config.providerID } : {}),
      ...(config.registerWithTaints?.length
        ? {
            taints: config.registerWithTaints.map(({ key = '', value, effect = 'NoSchedule' }) => ({
              key,
              effect,
              ...(value === undefined || value === '' ? {} : { value }),
            })),
          }
        : {}),
    },
    status,
  };
}

/**
 * The strategic merge patch that gives an existing Node the labels and annotations that it should have; undefined
 * where it has them. Taints are only set when a Node is created: afterwards they are the administrator's, and
 * NodeRestriction forbids a node to change them. Pure.
 */
export function metadataPatch(existing: Node, wanted: Node): object | undefined {
  const missing = (
    has: Readonly<Record<string, string>> = {},
    wants: Readonly<Record<string, string>> = {},
  ): Record<string, string> | undefined => {
    const different = Object.entries(wants).filter(([name, value]) => has[name] !== value);
    return different.length === 0 ? undefined : Object.fromEntries(different);
  };
  const labels = missing(existing.metadata?.labels, wanted.metadata?.labels);
  const annotations = missing(existing.metadata?.annotations, wanted.metadata?.annotations);
  const providerID =
    wanted.spec?.providerID && !existing.spec?.providerID ? wanted.spec.providerID : undefined;
  if (labels === undefined && annotations === undefined && providerID === undefined) return undefined;
  return {
    ...(labels === undefined && annotations === undefined ? {} : { metadata: { labels, annotations } }),
    ...(providerID === undefined ? {} : { spec: { providerID } }),
  };
}

/**
 * One try to have the Node at the apiserver: the object as it is there afterwards, and whether it was made now;
 * undefined where there is none and `create` is false. Throws what the client throws.
 */
export async function ensureNode(options: {
  readonly client: ApiserverClient;
  readonly wanted: Node;
  /** registerNode. */
  readonly create: boolean;
  readonly log: Logger;
  readonly signal: AbortSignal;
}): Promise<{ readonly node: Node; readonly created: boolean } | undefined> {
  const { client, wanted, log, signal } = options;
  const path = `/api/v1/nodes/${wanted.metadata!.name}`;
  const read = () =>
    client.get<Node>(path, { signal }).catch((error: unknown) => {
      if (apiStatus(error) === 404) return undefined;
      throw error;
    });
  // Looked for first: an agent starts much more often than a node joins.
  let existing = await read();
  if (existing === undefined) {
    if (!options.create) return undefined;
    try {
      return { node: await client.create<Node>('/api/v1/nodes', wanted, { signal }), created: true };
    } catch (error) {
      if (apiStatus(error) !== 409) throw error;
      existing = await read();
      if (existing === undefined) throw error;
    }
  }
  const patch = options.create ? metadataPatch(existing, wanted) : undefined;
  if (patch === undefined) return { node: existing, created: false };
  try {
    return { node: await client.patch<Node>(path, 'strategic', patch, { signal }), created: false };
  } catch (error) {
    // A label that this node may not set must not keep it from working.
    if (apiStatus(error) !== 403 && apiStatus(error) !== 422) throw error;
    log.warn({ err: error }, 'the apiserver refused labels or annotations of this node');
    return { node: existing, created: false };
  }
}
