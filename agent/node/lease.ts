/** The node's Lease: the sign of life that the control plane goes by. */
import { type Clock, rfc3339Micro, sleep } from '../../runtime/host/clock.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { backoffDelay } from '../apiserver/backoff.ts';
import { apiStatus } from '../apiserver/client.ts';
import type { ApiserverClient, KubeObject } from '../apiserver/types.ts';

export interface LeaseOptions {
  readonly client: ApiserverClient;
  readonly nodeName: string;
  /** Of the Node, which owns the lease. */
  readonly nodeUid: () => string | undefined;
  /** nodeLeaseDurationSeconds; it is renewed every quarter of it. */
  readonly durationSeconds: number;
  readonly clock: Clock;
  readonly log: Logger;
  readonly random: () => number;
  /** Called when renewals time out again and again: connections may be dead. */
  readonly onRepeatedTimeout?: () => void;
  /** Called when a renewal succeeds after one that did not. */
  readonly onRecovered?: () => void;
}

export interface LeaseKeeper {
  close(): Promise<void>;
}

interface Lease extends KubeObject {
  readonly spec?: Readonly<Record<string, unknown>>;
}

const folder = '/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases';
/** kubelet's: five tries in about six seconds, then one about every seven. */
const retry = { baseMs: 100, maxMs: 7000 };
const jitter = 0.04;

export function keepLease(options: LeaseOptions): LeaseKeeper {
  const { client, nodeName, durationSeconds, clock, log, random } = options;
  const controller = new AbortController();
  const { signal } = controller;
  const path = `${folder}/${nodeName}`;
  const intervalMs = durationSeconds * 250;
  const call = { signal, deadlineMs: intervalMs };
  let latest: Lease | undefined;

  function renewed(base: Lease | undefined): Lease {
    const uid = options.nodeUid();
    const metadata = base?.metadata ?? { name: nodeName, namespace: 'kube-node-lease' };
    return {
      apiVersion: 'coordination.k8s.io/v1',
      kind: 'Lease',
      metadata: {
        ...metadata,
        // A Node that was made anew has another uid, and the garbage collector goes by it.
        ...(uid === undefined
          ? {}
          : { ownerReferences: [{ apiVersion: 'v1', kind: 'Node', name: nodeName, uid }] }),
      },
      spec: {
        ...base?.spec,
        holderIdentity: nodeName,
        leaseDurationSeconds: durationSeconds,
        renewTime: rfc3339Micro(clock.now()),
      },
    };
  }

  async function renew(): Promise<void> {
    latest ??= await client.get<Lease>(path, call).catch((error: unknown) => {
      if (apiStatus(error) === 404) return undefined;
      throw error;
    });
    try {
      latest =
        latest === undefined
          ? await client.create<Lease>(folder, renewed(undefined), call)
          : await client.replace<Lease>(path, renewed(latest), call);
    } catch (error) {
      // Somebody else wrote it, or removed it: it is read again.
      if (apiStatus(error) === 409 || apiStatus(error) === 404) latest = undefined;
      throw error;
    }
  }

  async function run(): Promise<void> {
    let failures = 0;
    let timeouts = 0;
    while (!signal.aborted) {
      const began = clock.monotonic();
      let waitMs: number;
      try {
        await renew();
        if (failures > 0) {
          log.info('the lease is renewed again');
          options.onRecovered?.();
        }
        failures = 0;
        timeouts = 0;
        waitMs = intervalMs * (1 + jitter * random()) - (clock.monotonic() - began);
      } catch (error) {
        if (signal.aborted) break;
        failures++;
        const lost = apiStatus(error) === 409 && failures === 1;
        waitMs = lost ? 0 : backoffDelay(failures, random(), retry);
        if (failures <= 3 || failures % 10 === 0) {
          log.warn({ err: error, failures }, 'the lease of this node was not renewed');
        }
        timeouts = isError(error, 'DEADLINE_EXCEEDED') ? timeouts + 1 : 0;
        if (timeouts >= 2) options.onRepeatedTimeout?.();
      }
      if (waitMs > 0) await sleep(clock, waitMs, signal).catch(() => {});
    }
  }

  const ended = run();
  return {
    async close() {
      controller.abort(new KeelsonError('ABORTED', 'the lease is no longer renewed'));
      await ended;
    },
  };
}
