/**
 * The cgroups above the pods' own: all pods together have what the machine has less what is reserved, the QoS classes
 * below share the processors by what their pods ask for (cm.qosContainerManagerImpl, node_container_manager_linux.go).
 */
import { dirname } from 'node:path';
import type { CgroupResources, Cgroups } from '../../../runtime/host/cgroups.ts';
import { describe } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { milli, wholeUnits } from '../../apiserver/quantity.ts';
import type { Pod } from '../../apiserver/types.ts';
import { type CgroupSettings, cgroupOf, cpuShares, podRequestMilli, qosClassOf } from '../spec/qos.ts';

const bestEffortShares = 2;

/** What the reservations leave of the machine. */
export interface Reservations {
  readonly enforceNodeAllocatable: readonly string[];
  readonly kubeReserved?: Readonly<Record<string, string>>;
  readonly systemReserved?: Readonly<Record<string, string>>;
  readonly kubeReservedCgroup?: string;
  readonly systemReservedCgroup?: string;
}

/**
 * The limits of all pods together; undefined where `pods` are not enforced. The eviction threshold is not taken off:
 * it is reached before the limit is. Pure.
 */
export function kubepodsLimits(
  config: Reservations,
  machine: { readonly cpus: number; readonly memoryBytes: number },
): CgroupResources | undefined {
  if (!config.enforceNodeAllocatable.includes('pods')) return undefined;
  const reserved = (name: string, read: (text: string) => number) =>
    [config.kubeReserved?.[name], config.systemReserved?.[name]].reduce(
      (sum, text) => sum + (text === undefined ? 0 : read(text)),
      0,
    );
  const memory = Math.max(0, machine.memoryBytes - reserved('memory', wholeUnits));
  return {
    cpuShares: cpuShares(Math.max(0, machine.cpus * 1000 - reserved('cpu', milli))),
    ...(memory > 0 ? { memoryLimitBytes: memory } : {}),
  };
}

/** A group that is not ours, and what it is held to. */
export interface ReservedGroup {
  readonly path: string;
  readonly resources: CgroupResources;
}

/**
 * The groups of the system and of the node's own daemons, held to what is reserved for them where that is enforced:
 * `system-reserved`, `kube-reserved`, and with `-compressible` their processors alone. Pure.
 */
export function reservedGroups(config: Reservations): ReservedGroup[] {
  const all = [
    ['system-reserved', config.systemReservedCgroup, config.systemReserved],
    ['kube-reserved', config.kubeReservedCgroup, config.kubeReserved],
  ] as const;
  return all.flatMap(([name, path, reserved]) => {
    const whole = config.enforceNodeAllocatable.includes(name);
    const compressible = config.enforceNodeAllocatable.includes(`${name}-compressible`);
    if (path === undefined || path === '' || (!whole && !compressible)) return [];
    const { cpu, memory, pid } = reserved ?? {};
    const resources = {
      ...(cpu === undefined ? {} : { cpuShares: cpuShares(milli(cpu)) }),
      ...(whole && memory !== undefined ? { memoryLimitBytes: wholeUnits(memory) } : {}),
      ...(whole && pid !== undefined ? { pidsLimit: wholeUnits(pid) } : {}),
    };
    return [{ path: path.startsWith('/') ? path : `/${path}`, resources }];
  });
}

/** What the group of all Burstable pods gets of the processors. Pure. */
export function burstableShares(pods: readonly Pod[]): number {
  const requests = pods
    .filter((pod) => qosClassOf(pod) === 'Burstable')
    .reduce((sum, pod) => sum + podRequestMilli(pod, 'cpu'), 0);
  return cpuShares(requests);
}

export interface QosGroups {
  /** The pods that hold resources have changed. Returns at once; writes what differs. */
  update(pods: readonly Pod[]): void;
}

export function makeQosGroups(options: {
  readonly cgroups: Pick<Cgroups, 'ensure'>;
  readonly settings: CgroupSettings;
  readonly limits: CgroupResources | undefined;
  /** Of others, held to their reservations too. Default none. */
  readonly reserved?: readonly ReservedGroup[];
  /** Events of the node. */
  readonly tell?: (type: 'Normal' | 'Warning', reason: string, message: string) => void;
  readonly log: Logger;
}): QosGroups {
  const { cgroups, settings, log, tell = () => {} } = options;
  const folder = (qos: Parameters<typeof cgroupOf>[1]) => dirname(cgroupOf('', qos, settings).path);
  let wanted: number | undefined;
  let written: number | undefined;
  let made = false;
  let writing = false;

  /** Told as kubelet does; `done` is not, where there was nothing to be held to. */
  async function enforce(
    work: () => Promise<void>,
    done: string | undefined,
    failed: string,
    path: string,
  ): Promise<void> {
    try {
      await work();
    } catch (error) {
      tell('Warning', 'FailedNodeAllocatableEnforcement', `${failed} "${path}": ${describe(error)}`);
      throw error;
    }
    if (done !== undefined) tell('Normal', 'NodeAllocatableEnforced', done);
  }

  async function write(): Promise<void> {
    if (!made) {
      await enforce(
        () => cgroups.ensure(folder('Guaranteed'), options.limits),
        options.limits && 'Updated Node Allocatable limit across pods',
        'Failed to update Node Allocatable Limits',
        folder('Guaranteed'),
      );
      await cgroups.ensure(folder('BestEffort'), { cpuShares: bestEffortShares });
      for (const { path, resources } of options.reserved ?? [])
        await enforce(
          () => cgroups.ensure(path, resources),
          `Updated limits on reserved cgroup ${path}`,
          'Failed to enforce Reserved Cgroup Limits on',
          path,
        );
      made = true;
    }
    while (wanted !== undefined && wanted !== written) {
      const next = wanted;
      await cgroups.ensure(folder('Burstable'), { cpuShares: next });
      written = next;
    }
  }

  return {
    update(pods) {
      wanted = burstableShares(pods);
      if (writing || wanted === written) return;
      writing = true;
      void (async () => {
        try {
          await write();
        } catch (error) {
          // The next change of the pods tries again.
          log.warn({ error: describe(error) }, 'cannot set the cgroups of the QoS classes');
        }
        writing = false;
      })();
    },
  };
}
