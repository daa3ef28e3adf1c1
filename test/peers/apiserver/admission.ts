/** What admission adds to new objects before they are stored. */
import type { Pod, ServiceAccount } from 'kubernetes-types/core/v1.js';
import { defaultPod, isMirrorPod } from './pod-defaults.ts';
import { type Resource, resourceNamed, type StoredObject } from './resources.ts';
import { forbidden } from './status.ts';
import type { Store } from './store.ts';

const accounts = resourceNamed('serviceaccounts');

/** Returns the function that fills in a new, validated object; it changes it. Throws 403 where admission refuses. */
export function makeAdmission(store: Store): (resource: Resource, object: StoredObject) => void {
  let addresses = 1;
  return (resource: Resource, object: StoredObject) => {
    if (resource.kind === 'Namespace') {
      object['spec'] = { finalizers: ['kubernetes'] };
      object['status'] = { phase: 'Active' };
      object.metadata.labels = {
        'kubernetes.io/metadata.name': object.metadata.name!,
        ...object.metadata.labels,
      };
    }
    if (resource.kind === 'Secret') object['type'] ??= 'Opaque';
    if (resource.kind === 'Service') {
      object['spec'] ??= {};
      const spec = object['spec'] as { clusterIP?: string; type?: string; clusterIPs?: string[] };
      spec.type ??= 'ClusterIP';
      spec.clusterIP ??= `10.96.${addresses >> 8}.${addresses++ & 255}`;
      spec.clusterIPs ??= [spec.clusterIP];
    }
    if (resource.kind === 'Pod') {
      const pod = object as Pod;
      const name = pod.spec!.serviceAccountName || pod.spec!.serviceAccount || 'default';
      const account = store.get(accounts, pod.metadata!.namespace, name) as ServiceAccount | undefined;
      if (account === undefined && !isMirrorPod(pod)) {
        const where = `${pod.metadata!.namespace}/${name}`;
        throw forbidden(
          resource,
          pod.metadata!.name!,
          `error looking up service account ${where}: serviceaccount "${name}" not found`,
        );
      }
      object['status'] = defaultPod(pod, account?.automountServiceAccountToken ?? true);
    }
  };
}
