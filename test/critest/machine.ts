/**
 * A machine of its own inside this one: namespaces for processes, mounts, network, IPC and cgroups, so that critest
 * can use its fixed host ports, leave its shared memory and be killed, and nothing of it touches what else runs here.
 * Everything but files and cgroups ends with the first process in it.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdir, readFile, rmdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../../runtime/host/exec.ts';
import { cgroupFolders } from '../peers/machine.ts';
import { waitFor } from '../peers/process.ts';

interface Hierarchy {
  readonly target: string;
  readonly type: 'cgroup' | 'cgroup2';
  /** As mount(8) takes them. */
  readonly options: string;
}

/** The cgroup hierarchies that are mounted here. */
async function hierarchies(): Promise<Hierarchy[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).trim().split('\n');
  return lines.flatMap((line): Hierarchy[] => {
    const [before, after] = line.split(' - ') as [string, string];
    const [type, , options] = after.split(' ') as [string, string, string];
    if (type !== 'cgroup' && type !== 'cgroup2') return [];
    const own = options.split(',').filter((option) => option !== 'rw' && option !== 'ro');
    return [{ target: before.split(' ')[4]!, type, options: own.join(',') }];
  });
}

/**
 * Runs a program as the second process of a new machine (the first one collects orphans), its cgroup being
 * `/<name>` in every hierarchy. Returns its exit code. When `signal` fires, everything in it is killed.
 */
export async function runApart(
  name: string,
  program: readonly string[],
  signal: AbortSignal,
): Promise<number> {
  const all = await hierarchies();
  for (const { target } of all) {
    await mkdir(join(target, name));
    // A cgroup of the cpuset hierarchy takes no process before it has processors and memory.
    for (const file of ['cpuset.cpus', 'cpuset.mems']) {
      const value = await readFile(join(target, file), 'utf8').catch(() => undefined);
      if (value !== undefined) await writeFile(join(target, name, file), value).catch(() => {});
    }
  }
  // The shell enters the cgroups before it makes the namespace whose root they are.
  const enter = `for folder in ${all.map(({ target }) => `'${join(target, name)}'`).join(' ')}; do echo $$ > "$folder/cgroup.procs"; done
exec unshare --cgroup --mount --net --ipc --uts --pid --fork --kill-child --mount-proc --propagation private catatonit -- "$@"`;
  try {
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', 'sh', '-ec', enter, 'sh', ...program], {
      stdio: 'inherit',
    });
    const kill = () => child.kill('SIGKILL');
    signal.addEventListener('abort', kill);
    const [code] = (await once(child, 'exit')) as [number | null];
    signal.removeEventListener('abort', kill);
    return code ?? 1;
  } finally {
    await removeCgroups(name);
  }
}

/** Waits for the last processes, which the kernel ends, to have left. */
async function removeCgroups(name: string): Promise<void> {
  const removed = async () => {
    for (const folder of await cgroupFolders(`/${name}`)) await rmdir(folder);
    return true;
  };
  await waitFor('the cgroups of the test to be empty', removed, { deadlineMs: 20_000, everyMs: 100 });
}

/**
 * To be called first by what runs in it: a loopback, mounts that propagate as on a real machine, an empty /run, cgroups
 * from its root on.
 */
export async function settleApart(): Promise<void> {
  const all = await hierarchies();
  const remounts = all.map(
    ({ target, type, options }) =>
      `umount '${target}' && mount -t ${type} ${options === '' ? '' : `-o '${options}'`} ${type} '${target}'`,
  );
  const own = ['mount --make-rshared /', 'mount -t tmpfs -o mode=755 tmpfs /run', 'ip link set lo up'];
  const script = [...own, ...remounts].join('\n');
  await exec('sh', ['-ec', script], { deadlineMs: 30_000 });
  const unified = all.find(({ type, target }) => type === 'cgroup2' && target === '/sys/fs/cgroup');
  if (unified === undefined) return;
  // Controllers can be handed on from a cgroup of the unified hierarchy only while no process is in it.
  const leaf = join(unified.target, 'critest');
  await mkdir(leaf);
  for (const pid of (await readFile(join(unified.target, 'cgroup.procs'), 'utf8')).trim().split('\n')) {
    await writeFile(join(leaf, 'cgroup.procs'), pid).catch(() => {});
  }
}
