/**
 * The cgroup tree: making, limiting, emptying and removing groups on cgroup v1 (every hierarchy under the root, hybrid
 * ones too) and v2. Needs no systemd. Paths are below the root, such as `/kubepods/burstable/pod1`.
 */
import { existsSync, readdirSync } from 'node:fs';
import { mkdir, readdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { abortError, errnoOf, KeelsonError } from './errors.ts';

/** What is absent is left as it is. */
export interface CgroupResources {
  /** Relative weight as cgroup v1 counts it: 2 to 262144, 1024 for one processor. */
  readonly cpuShares?: number;
  /** Microseconds for each period; -1: no limit. */
  readonly cpuQuota?: number;
  /** Microseconds. */
  readonly cpuPeriod?: number;
  /** -1: no limit. */
  readonly memoryLimitBytes?: number;
  /** -1: no limit. */
  readonly pidsLimit?: number;
  /** By size as the kernel names it (`2MB`), in bytes. Where the kernel cannot limit huge pages, nothing is. */
  readonly hugepageLimits?: readonly { readonly pageSize: string; readonly limit: number }[];
}

/** All calls throw INVALID_ARGUMENT for a path that is not a clean absolute one. */
export interface Cgroups {
  readonly version: 1 | 2;
  /** Makes the group (and those above) and sets `resources`. Idempotent. Throws SYSCALL_FAILED. */
  ensure(path: string, resources?: CgroupResources): Promise<void>;
  /**
   * Removes the group and the empty ones below. Idempotent; kills nothing. Throws FAILED_PRECONDITION when processes
   * are still there after about two seconds.
   */
  remove(path: string, signal?: AbortSignal): Promise<void>;
  /** Names of the groups directly below; of v1, in whichever hierarchy. None where there is no such group. */
  children(path: string): Promise<string[]>;
  /** KILL to every process in the group and below, until none is left or two seconds have passed. */
  kill(path: string): Promise<void>;
  /** Processes in the group and below, as this PID namespace numbers them; none where it is gone. */
  processes(path: string): Promise<number[]>;
  /** How often the kernel killed a process of the group for want of memory; 0 where it cannot be known. */
  oomKills(path: string): Promise<number>;
  /** A file of the group, of v1 in the hierarchy of `controller`; undefined where there is none. */
  read(path: string, controller: string, file: string): Promise<string | undefined>;
  /** Throws SYSCALL_FAILED. */
  write(path: string, controller: string, file: string, value: string): Promise<void>;
}

const busyWaits = [1, 2, 4, 8, 16, 32, 64, 128, 250, 500, 1000];

/** Which version is in use at `root`, and the calls for it. `root` is for tests. */
export function detectCgroups(root = '/sys/fs/cgroup'): Cgroups {
  return existsSync(`${root}/cgroup.controllers`) ? unified(root) : hierarchies(root);
}

/** cgroup v2: weight from v1 shares, as runc 1.3.2 and crun 1.23 do it (1024 shares become 100). */
export function cpuWeightOf(shares: number): number {
  if (shares <= 2) return 1;
  if (shares >= 262_144) return 10_000;
  const log = Math.log2(shares);
  return Math.ceil(10 ** ((log * log + 125 * log) / 612 - 7 / 34));
}

/** The files of `resources` on v2, in the order of writing. Pure. */
export function unifiedFiles(resources: CgroupResources): [file: string, value: string][] {
  const files: [string, string][] = [];
  const { cpuShares, cpuQuota, cpuPeriod, memoryLimitBytes, pidsLimit } = resources;
  if (cpuShares) files.push(['cpu.weight', String(cpuWeightOf(cpuShares))]);
  if (cpuQuota || cpuPeriod) {
    files.push(['cpu.max', `${cpuQuota && cpuQuota > 0 ? cpuQuota : 'max'} ${cpuPeriod || 100_000}`]);
  }
  if (memoryLimitBytes) files.push(['memory.max', memoryLimitBytes < 0 ? 'max' : String(memoryLimitBytes)]);
  if (pidsLimit) files.push(['pids.max', pidsLimit < 0 ? 'max' : String(pidsLimit)]);
  for (const { pageSize, limit } of resources.hugepageLimits ?? [])
    files.push([`hugetlb.${pageSize}.max`, String(limit)]);
  return files;
}

/** The files of `resources` on v1 with their controllers, in the order of writing. Pure. */
export function hierarchyFiles(
  resources: CgroupResources,
): [controller: string, file: string, value: string][] {
  const files: [string, string, string][] = [];
  const { cpuShares, cpuQuota, cpuPeriod, memoryLimitBytes, pidsLimit } = resources;
  if (cpuShares) files.push(['cpu', 'cpu.shares', String(cpuShares)]);
  if (cpuPeriod) files.push(['cpu', 'cpu.cfs_period_us', String(cpuPeriod)]);
  if (cpuQuota) files.push(['cpu', 'cpu.cfs_quota_us', String(cpuQuota)]);
  if (memoryLimitBytes) files.push(['memory', 'memory.limit_in_bytes', String(memoryLimitBytes)]);
  if (pidsLimit) files.push(['pids', 'pids.max', pidsLimit < 0 ? 'max' : String(pidsLimit)]);
  for (const { pageSize, limit } of resources.hugepageLimits ?? [])
    files.push(['hugetlb', `hugetlb.${pageSize}.limit_in_bytes`, String(limit)]);
  return files;
}

/** `kubepods-burstable.slice` is at `/kubepods.slice/kubepods-burstable.slice` (systemd.slice(5)). Pure. */
export function slicePath(slice: string): string {
  const name = slice.replace(/^.*\//, '').replace(/\.slice$/, '');
  if (name === '-' || name === '') return '/';
  const parts = name.split('-');
  return `/${parts.map((_, index) => `${parts.slice(0, index + 1).join('-')}.slice`).join('/')}`;
}

/** `path` without doubled or trailing slashes. Throws INVALID_ARGUMENT where it could lead elsewhere. */
export function cleanCgroupPath(path: string): string {
  const parts = path.split('/').filter((part) => part !== '');
  if (!path.startsWith('/') || path.includes('\0') || parts.some((part) => part === '.' || part === '..')) {
    throw new KeelsonError('INVALID_ARGUMENT', `${JSON.stringify(path)} is not a path in the cgroup tree`);
  }
  return `/${parts.join('/')}`;
}

function unified(root: string): Cgroups {
  const ensure = async (path: string, resources: CgroupResources = {}) => {
    const clean = cleanCgroupPath(path);
    await make(root + clean);
    const above = clean.split('/').slice(1, -1);
    for (let depth = 0; depth <= above.length; depth++) {
      await enableControllers(`${root}/${above.slice(0, depth).join('/')}`);
    }
    for (const [file, value] of unifiedFiles(resources)) {
      const target = `${root}${clean}/${file}`;
      if (!file.startsWith('hugetlb.') || existsSync(target)) await put(target, value);
    }
  };
  return {
    version: 2,
    ensure,
    remove: async (path, signal) => removeGroup(root + below(path), signal),
    children: (path) => groupsIn(root + below(path)),
    async kill(path) {
      const folder = root + below(path);
      try {
        await writeFile(`${folder}/cgroup.kill`, '1', { flag: 'r+' });
      } catch {
        // Linux before 5.14 has no such file.
      }
      await killAll(folder);
    },
    processes: (path) => processesOf(root + below(path)),
    oomKills: async (path) => counter(`${root}${below(path)}/memory.events`),
    read: async (path, _, file) => content(`${root}${below(path)}/${fileName(file)}`),
    write: async (path, _, file, value) => put(`${root}${below(path)}/${fileName(file)}`, value),
  };
}

/** Controllers reach a group only when every group above hands them down (cgroup-v2.rst, "Top-down Constraint"). */
async function enableControllers(folder: string): Promise<void> {
  const words = async (file: string) => (await readFile(`${folder}/${file}`, 'utf8')).trim().split(/\s+/);
  const [available, enabled] = await Promise.all([
    words('cgroup.controllers'),
    words('cgroup.subtree_control'),
  ]);
  const wanted = ['cpuset', 'cpu', 'io', 'memory', 'hugetlb', 'pids'].filter(
    (name) => available.includes(name) && !enabled.includes(name),
  );
  // One by one: a controller that this kernel or this place refuses must not take the others with it. Where it is
  // needed, the write of its limit says so.
  for (const name of wanted) {
    await writeFile(`${folder}/cgroup.subtree_control`, `+${name}`).catch(() => {});
  }
}

function hierarchies(root: string): Cgroups {
  const folders = readdirSync(root, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && existsSync(`${root}/${entry.name}/cgroup.procs`))
    .map((entry) => entry.name);
  const folderOf = (controller: string) => folders.find((name) => name.split(',').includes(controller));
  const ensure = async (path: string, resources: CgroupResources = {}) => {
    const clean = cleanCgroupPath(path);
    await Promise.all(
      folders.map((name) =>
        name.split(',').includes('cpuset')
          ? makeCpuset(`${root}/${name}`, clean)
          : make(`${root}/${name}${clean}`),
      ),
    );
    const late: [string, string][] = [];
    for (const [controller, file, value] of hierarchyFiles(resources)) {
      const folder = folderOf(controller);
      if (folder === undefined && controller === 'hugetlb') continue;
      if (folder === undefined) {
        throw new KeelsonError('SYSCALL_FAILED', `cannot set ${file}: no cgroup hierarchy for ${controller}`);
      }
      const target = `${root}/${folder}${clean}/${file}`;
      try {
        await put(target, value);
      } catch (error) {
        // A period can be too short for the quota that is still in force: then the quota goes first.
        if (file !== 'cpu.cfs_period_us') throw error;
        late.push([target, value]);
      }
    }
    for (const [target, value] of late) await put(target, value);
  };
  return {
    version: 1,
    ensure,
    async remove(path, signal) {
      const clean = below(path);
      await Promise.all(folders.map((name) => removeGroup(`${root}/${name}${clean}`, signal)));
    },
    async children(path) {
      const clean = below(path);
      const found = await Promise.all(folders.map((name) => groupsIn(`${root}/${name}${clean}`)));
      return [...new Set(found.flat())];
    },
    async kill(path) {
      const clean = below(path);
      const name = folderOf('pids') ?? folderOf('memory') ?? folders[0];
      if (name !== undefined) await killAll(`${root}/${name}${clean}`);
    },
    async processes(path) {
      const name = folderOf('pids') ?? folderOf('memory') ?? folders[0];
      return name === undefined ? [] : processesOf(`${root}/${name}${below(path)}`);
    },
    oomKills: async (path) =>
      counter(`${root}/${folderOf('memory') ?? 'memory'}${below(path)}/memory.oom_control`),
    read: async (path, controller, file) =>
      content(`${root}/${folderOf(controller) ?? controller}${below(path)}/${fileName(file)}`),
    write: async (path, controller, file, value) =>
      put(`${root}/${folderOf(controller) ?? controller}${below(path)}/${fileName(file)}`, value),
  };
}

/** A clean path that is not the whole tree. */
function below(path: string): string {
  const clean = cleanCgroupPath(path);
  if (clean === '/') throw new KeelsonError('INVALID_ARGUMENT', 'the root of the cgroup tree is not ours');
  return clean;
}

function fileName(file: string): string {
  if (/^[\w.]+$/.test(file)) return file;
  throw new KeelsonError('INVALID_ARGUMENT', `${JSON.stringify(file)} is no file of a cgroup`);
}

async function content(file: string): Promise<string | undefined> {
  return readFile(file, 'utf8').catch(() => undefined);
}

async function groupsIn(folder: string): Promise<string[]> {
  try {
    const entries = await readdir(folder, { withFileTypes: true });
    return entries.filter((entry) => entry.isDirectory()).map(({ name }) => name);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

async function make(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
  } catch (error) {
    throw failure(`cannot make the cgroup ${folder}`, error);
  }
}

/** A new v1 cpuset takes no process before it has processors and memory nodes: it gets those of the group above. */
async function makeCpuset(root: string, path: string): Promise<void> {
  let folder = root;
  for (const part of path.split('/').slice(1)) {
    const parent = folder;
    folder = `${folder}/${part}`;
    await make(folder);
    for (const file of ['cpuset.cpus', 'cpuset.mems']) {
      const value = await readFile(`${folder}/${file}`, 'utf8').catch(() => undefined);
      if (value?.trim() === '') await put(`${folder}/${file}`, await readFile(`${parent}/${file}`, 'utf8'));
    }
  }
}

async function put(file: string, value: string): Promise<void> {
  try {
    // An empty text would be no write at all.
    await writeFile(file, value === '' ? '\n' : value);
  } catch (error) {
    throw failure(`cannot write ${value.trim()} to ${file}`, error);
  }
}

function failure(what: string, error: unknown): KeelsonError {
  const errno = errnoOf(error);
  return new KeelsonError('SYSCALL_FAILED', `${what}: ${errno ?? String(error)}`, {
    cause: error,
    details: { errno },
  });
}

async function removeGroup(folder: string, signal: AbortSignal | undefined): Promise<void> {
  for (const wait of [...busyWaits, undefined]) {
    if (await tryRemove(folder)) return;
    if (signal?.aborted) throw abortError(signal, `removing the cgroup ${folder}`);
    // v1 tells nobody when the last process has gone, and even a dead one lingers for some milliseconds.
    if (wait !== undefined) await sleep(wait);
  }
  const processes = await processesOf(folder);
  throw new KeelsonError(
    'FAILED_PRECONDITION',
    `the cgroup ${folder} is still in use${processes.length > 0 ? ` by processes ${processes.slice(0, 10).join(', ')}` : ''}`,
  );
}

/** True when the group is gone, false when something in it is busy. */
async function tryRemove(folder: string): Promise<boolean> {
  try {
    await rmdir(folder);
    return true;
  } catch (error) {
    const errno = errnoOf(error);
    if (errno === 'ENOENT') return true;
    if (errno !== 'EBUSY' && errno !== 'ENOTEMPTY') throw failure(`cannot remove ${folder}`, error);
  }
  const children = await foldersIn(folder);
  if (children.length === 0) return false;
  await Promise.all(children.map((name) => tryRemove(`${folder}/${name}`)));
  return rmdir(folder).then(
    () => true,
    (error) => errnoOf(error) === 'ENOENT',
  );
}

async function foldersIn(folder: string): Promise<string[]> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(() => []);
  return entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name);
}

/** Processes in the group and below, as this PID namespace numbers them. */
async function processesOf(folder: string): Promise<number[]> {
  const text = await readFile(`${folder}/cgroup.procs`, 'utf8').catch(() => '');
  const children = await Promise.all(
    (await foldersIn(folder)).map((name) => processesOf(`${folder}/${name}`)),
  );
  // 0 stands for a process that this PID namespace cannot see, and would mean "my own group" to kill(2).
  const own = text
    .split('\n')
    .map(Number)
    .filter((pid) => pid > 1 && pid !== process.pid);
  return [...own, ...children.flat()];
}

async function killAll(folder: string): Promise<void> {
  for (const wait of busyWaits) {
    const processes = await processesOf(folder);
    if (processes.length === 0) return;
    for (const pid of processes) {
      try {
        process.kill(pid, 'SIGKILL');
      } catch {
        // Gone meanwhile.
      }
    }
    await sleep(wait);
  }
}

async function counter(file: string): Promise<number> {
  const text = await readFile(file, 'utf8').catch(() => '');
  return Number(/^oom_kill (\d+)$/m.exec(text)?.[1] ?? 0);
}
