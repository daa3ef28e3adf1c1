/** What nodes ask of the apiserver, counted from its audit log. */
import { createReadStream } from 'node:fs';
import { createInterface } from 'node:readline';

interface AuditEvent {
  readonly auditID: string;
  readonly verb: string;
  readonly user: { readonly username: string };
  readonly objectRef?: {
    readonly resource?: string;
    readonly subresource?: string;
    readonly namespace?: string;
  };
}

/**
 * The requests of the node `name` about objects in `namespace`, by kind (`patch pods/status`). What a node asks for itself
 * (its lease, its status, the watch over all its pods) has other namespaces or none, and does not count.
 */
export async function requestsOf(
  auditLog: string,
  name: string,
  namespace: string,
): Promise<ReadonlyMap<string, number>> {
  const counts = new Map<string, number>();
  const seen = new Set<string>();
  for await (const line of createInterface({ input: createReadStream(auditLog) })) {
    // The last one may not be whole yet.
    if (!line.includes(namespace) || !line.endsWith('}')) continue;
    const { auditID, verb, user, objectRef } = JSON.parse(line) as AuditEvent;
    if (user.username !== `system:node:${name}` || objectRef?.namespace !== namespace) continue;
    // A watch is logged at its beginning and at its end.
    if (seen.has(auditID)) continue;
    seen.add(auditID);
    const { resource = '', subresource } = objectRef;
    const kind = `${verb} ${resource}${subresource === undefined ? '' : `/${subresource}`}`;
    counts.set(kind, (counts.get(kind) ?? 0) + 1);
  }
  return counts;
}
