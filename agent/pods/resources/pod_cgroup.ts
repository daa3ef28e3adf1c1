/** What a pod's cgroup is set to now. */
import type { Cgroups } from '../../../runtime/host/cgroups.ts';

export interface PodLimits {
  readonly memoryLimitBytes?: number;
  readonly cpuQuota?: number;
  readonly cpuPeriod?: number;
  readonly memoryUsage?: number;
}

/** cgroup v1 has no word for no limit but this number, rounded down to a page. */
const unlimitedV1 = 2 ** 62;

/** From the texts of the files; absent where there is no limit. Pure. */
export function parsePodLimits(
  version: 1 | 2,
  files: {
    readonly memory?: string;
    readonly quota?: string;
    readonly period?: string;
    readonly usage?: string;
  },
): PodLimits {
  const number = (text: string | undefined) => {
    const value = Number(text?.trim() || 'none');
    return Number.isFinite(value) && value > 0 && value < unlimitedV1 ? value : undefined;
  };
  const [quota, period] =
    version === 2 ? (files.quota ?? '').trim().split(/\s+/) : [files.quota, files.period];
  const found = {
    memoryLimitBytes: number(files.memory),
    cpuQuota: number(quota),
    cpuPeriod: number(period),
    memoryUsage: number(files.usage),
  };
  return Object.fromEntries(Object.entries(found).filter(([, value]) => value !== undefined));
}

export async function podLimits(
  cgroups: Partial<Pick<Cgroups, 'read' | 'version'>>,
  path: string,
): Promise<PodLimits> {
  const { read, version } = cgroups;
  if (read === undefined || version === undefined) return {};
  const names =
    version === 2
      ? ['memory.max', 'cpu.max', undefined, 'memory.current']
      : ['memory.limit_in_bytes', 'cpu.cfs_quota_us', 'cpu.cfs_period_us', 'memory.usage_in_bytes'];
  const [memory, quota, period, usage] = await Promise.all(
    names.map((name) =>
      name === undefined ? undefined : read(path, name.startsWith('cpu') ? 'cpu' : 'memory', name),
    ),
  );
  return parsePodLimits(version, { memory, quota, period, usage });
}
