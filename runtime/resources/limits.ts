/** What a container may use: checked, merged, and as the runtime-spec spells it. Pure. */
import type { LinuxContainerResources } from '../api.ts';
import { KeelsonError } from '../host/errors.ts';

/** What the host's cgroups offer. */
export interface CgroupFacts {
  readonly cgroupVersion: 1 | 2;
  /** The hugetlb controller is there. */
  readonly hugetlb: boolean;
  /** Swap is accounted for: then a memory limit is one of memory and swap together. */
  readonly swapLimit: boolean;
}

/** [field, smallest, biggest]; 0 means unset in all of them. The bounds are the kernel's. */
const bounds = [
  ['cpuPeriod', 0, 1_000_000],
  ['cpuQuota', -1, Number.MAX_SAFE_INTEGER],
  ['cpuShares', 0, Number.MAX_SAFE_INTEGER],
  ['memoryLimitBytes', -1, Number.MAX_SAFE_INTEGER],
  ['memorySwapLimitBytes', -1, Number.MAX_SAFE_INTEGER],
  ['oomScoreAdj', Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER],
  ['pidsLimit', -1, Number.MAX_SAFE_INTEGER],
] as const;

/** Throws `code` for what no kernel takes, or none with this version of cgroups. */
export function checkResources(
  resources: LinuxContainerResources,
  code: 'INVALID_ARGUMENT' | 'CONTAINER_CONFIG_INVALID',
  cgroupVersion: 1 | 2,
): void {
  const fail = (message: string) => new KeelsonError(code, `resources: ${message}`);
  for (const [field, least, most] of bounds) {
    const value = resources[field];
    if (value === undefined || value === 0) continue;
    if (!Number.isSafeInteger(value) || value < least || value > most)
      throw fail(`${field} cannot be ${value}`);
  }
  const { cpuPeriod, memoryLimitBytes, memorySwapLimitBytes } = resources;
  if (cpuPeriod && cpuPeriod < 1000) throw fail(`cpuPeriod cannot be ${cpuPeriod}: it is at least 1000 µs`);
  if (
    memorySwapLimitBytes &&
    memorySwapLimitBytes > 0 &&
    memoryLimitBytes &&
    memorySwapLimitBytes < memoryLimitBytes
  ) {
    throw fail('memorySwapLimitBytes is of memory and swap together: it cannot be below memoryLimitBytes');
  }
  for (const field of ['cpusetCpus', 'cpusetMems'] as const) {
    const list = resources[field] ?? '';
    if (list !== '' && !/^\d{1,5}(-\d{1,5})?(,\d{1,5}(-\d{1,5})?)*$/.test(list)) {
      throw fail(`${field} ${JSON.stringify(list)} is no list such as 0-2,7`);
    }
  }
  for (const { pageSize, limit } of resources.hugepageLimits ?? []) {
    if (!/^\d{1,6}[KMGT]B$/.test(pageSize))
      throw fail(`there are no huge pages of ${JSON.stringify(pageSize)}`);
    if (!Number.isSafeInteger(limit) || limit < 0) throw fail(`the limit of huge pages cannot be ${limit}`);
  }
  const unified = Object.entries(resources.unified ?? {});
  if (unified.length > 0 && cgroupVersion === 1)
    throw fail('the files of cgroup v2 are not on this node (v1)');
  for (const [key, value] of unified) {
    // A name in the container's own group: `memory.high`, never a path.
    if (!/^[a-z0-9_]+\.[A-Za-z0-9_.]+$/.test(key) || value.includes('\0')) {
      throw fail(`${JSON.stringify(key)} is no file of cgroup v2`);
    }
    if (key.startsWith('cgroup.')) throw fail(`${key} is not a limit`);
  }
}

/** What holds after an update: of `change` what is set, of `old` the rest. */
export function mergeResources(
  old: LinuxContainerResources,
  change: LinuxContainerResources,
): LinuxContainerResources {
  const set = Object.entries(change).filter(([name, value]) => {
    // A running process keeps its score, and 0 cannot be told from absent on the wire.
    if (name === 'oomScoreAdj') return false;
    if (Array.isArray(value)) return value.length > 0;
    return value !== undefined && value !== 0 && value !== '';
  });
  const pages = new Map((old.hugepageLimits ?? []).map((page) => [page.pageSize, page]));
  for (const page of change.hugepageLimits ?? []) pages.set(page.pageSize, page);
  return {
    ...old,
    ...Object.fromEntries(set),
    ...(pages.size > 0 ? { hugepageLimits: [...pages.values()] } : {}),
    ...(old.unified || change.unified ? { unified: { ...old.unified, ...change.unified } } : {}),
    // A swap limit without one of its own follows the memory limit.
    ...(change.memoryLimitBytes && !change.memorySwapLimitBytes ? { memorySwapLimitBytes: undefined } : {}),
  };
}

/** runtime-spec config-linux.md, `linux.resources`, without devices. */
export function resourceLimits(wanted: LinuxContainerResources, host: CgroupFacts): Record<string, unknown> {
  const { cpuShares, cpuQuota, cpuPeriod, cpusetCpus, cpusetMems, memoryLimitBytes, pidsLimit } = wanted;
  const limits: Record<string, unknown> = {};
  const cpu = {
    shares: cpuShares || undefined,
    quota: cpuQuota || undefined,
    period: cpuPeriod || undefined,
    cpus: cpusetCpus || undefined,
    mems: cpusetMems || undefined,
  };
  if (Object.values(cpu).some((value) => value !== undefined)) limits['cpu'] = cpu;
  const swap = host.swapLimit ? wanted.memorySwapLimitBytes || memoryLimitBytes || undefined : undefined;
  if (memoryLimitBytes || swap) limits['memory'] = { limit: memoryLimitBytes || undefined, swap };
  if (pidsLimit) limits['pids'] = { limit: pidsLimit };
  const pages = host.hugetlb ? (wanted.hugepageLimits ?? []) : [];
  if (pages.length > 0) limits['hugepageLimits'] = pages.map(({ pageSize, limit }) => ({ pageSize, limit }));
  if (host.cgroupVersion === 2 && wanted.unified !== undefined && Object.keys(wanted.unified).length > 0) {
    limits['unified'] = wanted.unified;
  }
  return limits;
}

/** A file of a cgroup, by controller since v1 has a tree for each. */
export interface LimitFile {
  readonly controller: string;
  readonly file: string;
}

/** The files that `resources` may change, in an order in which old values can be written back. */
export function limitFiles(resources: LinuxContainerResources, version: 1 | 2): LimitFile[] {
  const files = version === 2 ? unifiedLimits : hierarchyLimits;
  const pages = (resources.hugepageLimits ?? []).map(({ pageSize }) => hugepageFile(pageSize, version));
  const unified = version === 2 ? Object.keys(resources.unified ?? {}) : [];
  return [...files, ...pages, ...unified.map((file) => ({ controller: file.split('.', 1)[0]!, file }))];
}

export function hugepageFile(pageSize: string, version: 1 | 2): LimitFile {
  return {
    controller: 'hugetlb',
    file: version === 2 ? `hugetlb.${pageSize}.max` : `hugetlb.${pageSize}.limit_in_bytes`,
  };
}

const unifiedLimits = [
  'cpu.weight',
  'cpu.max',
  'cpuset.cpus',
  'cpuset.mems',
  'memory.max',
  'memory.swap.max',
  'pids.max',
].map((file): LimitFile => ({ controller: file.split('.', 1)[0]!, file }));
// Memory twice: of memory and memsw the smaller must go first on the way down, the bigger on the way up.
const hierarchyLimits = [
  'cpu.shares',
  'cpu.cfs_period_us',
  'cpu.cfs_quota_us',
  'cpu.cfs_period_us',
  'cpuset.cpus',
  'cpuset.mems',
  'memory.limit_in_bytes',
  'memory.memsw.limit_in_bytes',
  'memory.limit_in_bytes',
  'pids.max',
].map((file): LimitFile => ({ controller: file.split('.', 1)[0]!, file }));
