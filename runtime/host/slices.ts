/**
 * cgroups that systemd owns: transient slices with properties, over busctl(1). What is written past systemd into the
 * files of a slice is lost as soon as systemd sets up the slice for the first scope in it.
 */
import { basename, dirname } from 'node:path';
import { type CgroupResources, type Cgroups, cpuWeightOf } from './cgroups.ts';
import { isError, KeelsonError } from './errors.ts';
import { exec } from './exec.ts';

/** uint64's largest: systemd's `infinity`. */
const infinity = 2n ** 64n - 1n;
const defaultPeriodUs = 100_000;
const deadlineMs = 25_000;

/** The properties of `resources` on cgroup v2, as busctl takes an `a(sv)` without its count. Pure. */
export function sliceProperties(resources: CgroupResources): [name: string, type: string, value: string][] {
  const { cpuShares, cpuQuota, cpuPeriod, memoryLimitBytes, pidsLimit } = resources;
  const properties: [string, string, string][] = [];
  const limit = (name: string, value: number | bigint) => properties.push([name, 't', String(value)]);
  if (cpuShares) limit('CPUWeight', cpuWeightOf(cpuShares));
  if (cpuQuota) {
    // systemd rounds what is no whole hundredth of a processor down: up, as runc does, is never too little.
    const perSecond = Math.ceil((cpuQuota * 1_000_000) / (cpuPeriod || defaultPeriodUs) / 10_000) * 10_000;
    limit('CPUQuotaPerSecUSec', cpuQuota < 0 ? infinity : perSecond);
    // systemd before 242 knows no other period than this one.
    if (cpuPeriod && cpuPeriod !== defaultPeriodUs) limit('CPUQuotaPeriodUSec', cpuPeriod);
  }
  if (memoryLimitBytes) limit('MemoryMax', memoryLimitBytes < 0 ? infinity : memoryLimitBytes);
  if (pidsLimit) limit('TasksMax', pidsLimit < 0 ? infinity : pidsLimit);
  return properties;
}

/**
 * The groups of a slice's path (see `slicePath`): made, limited and stopped by systemd, with the slices above it.
 * `ensure` and `remove` hold to the contract of `Cgroups`; `ensure` throws EXEC_FAILED and DEPENDENCY_MISSING, too.
 */
export function systemdSlices(
  cgroups: Cgroups,
  call: (method: string, args: readonly string[], signal?: AbortSignal) => Promise<void> = callManager,
): Cgroups {
  return {
    ...cgroups,
    async ensure(path, resources = {}) {
      const slice = basename(path);
      const limits = sliceProperties(resources);
      // Accounting has systemd hand the controllers down.
      const accounting = ['CPU', 'Memory', 'Tasks'].map((name) => [`${name}Accounting`, 'b', 'true']);
      const properties = [
        ['Description', 's', `pod cgroup ${slice}`],
        ['DefaultDependencies', 'b', 'false'],
        ...accounting,
        ...limits,
      ];
      const counted = (list: readonly (readonly string[])[]) => [String(list.length), ...list.flat()];
      try {
        const signature = 'ssa(sv)a(sa(sv))';
        await call('StartTransientUnit', [signature, slice, 'replace', ...counted(properties), '0']);
      } catch (error) {
        if (!isError(error, 'EXEC_FAILED') || !/already exists|already loaded/.test(saidBy(error)))
          throw error;
        if (limits.length > 0)
          await call('SetUnitProperties', ['sba(sv)', slice, 'true', ...counted(limits)]);
      }
    },
    async remove(path, signal) {
      if (!(await cgroups.children(dirname(path))).includes(basename(path))) return;
      try {
        await call('StopUnit', ['ss', basename(path), 'replace'], signal);
      } catch (error) {
        if (!isError(error, 'EXEC_FAILED') || !/not loaded|not found/.test(saidBy(error))) throw error;
      }
      await cgroups.remove(path, signal);
    },
  };
}

function saidBy(error: KeelsonError): string {
  return `${error.message} ${String(error.details['stderr'] ?? '')}`;
}

async function callManager(method: string, args: readonly string[], signal?: AbortSignal): Promise<void> {
  const manager = [
    'org.freedesktop.systemd1',
    '/org/freedesktop/systemd1',
    'org.freedesktop.systemd1.Manager',
  ];
  try {
    await exec('busctl', ['--system', '--quiet', 'call', ...manager, method, ...args], {
      deadlineMs,
      signal,
    });
  } catch (error) {
    if (!isError(error, 'EXEC_NOT_FOUND')) throw error;
    throw new KeelsonError(
      'DEPENDENCY_MISSING',
      'busctl is missing: systemd cannot be asked for a pod cgroup',
      {
        cause: error,
        hint: 'install systemd and D-Bus (apt-get install systemd dbus), or set cgroupDriver: cgroupfs',
      },
    );
  }
}
