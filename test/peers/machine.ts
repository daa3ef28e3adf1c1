/** What is on this machine that outlives a process: mounts, cgroups, network links, firewall rules; and processes. */
import { readdir, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { errnoOf } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { listFolder } from '../../runtime/host/files.ts';

/** Mount points at or below `folder`, the last mounted first: the order in which they can be unmounted. */
export async function mountsBelow(folder: string): Promise<string[]> {
  const lines = (await readFile('/proc/self/mountinfo', 'utf8')).split('\n');
  return lines
    .map((line) => (line.split(' ')[4] ?? '').replace(/\\(\d{3})/g, (_, octal) => fromOctal(octal)))
    .filter((target) => target === folder || target.startsWith(folder.endsWith('/') ? folder : `${folder}/`))
    .reverse();
}

const fromOctal = (digits: string) => String.fromCharCode(Number.parseInt(digits, 8));

export interface MachineProcess {
  readonly pid: number;
  /** Arguments, joined by spaces; empty for a zombie. */
  readonly command: string;
}

/** Processes other than this one with `text` in their arguments. */
export async function processesNaming(text: string): Promise<MachineProcess[]> {
  const found: MachineProcess[] = [];
  for (const entry of await readdir('/proc')) {
    const pid = Number(entry);
    if (!Number.isInteger(pid) || pid === process.pid) continue;
    const command = await commandOf(pid);
    if (command.includes(text)) found.push({ pid, command });
  }
  return found;
}

/** The arguments of a process; empty where it has gone. */
export async function commandOf(pid: number): Promise<string> {
  try {
    return (await readFile(`/proc/${pid}/cmdline`, 'utf8')).replaceAll('\0', ' ').trim();
  } catch {
    return '';
  }
}

/** Mount points of all cgroup hierarchies, v1 and v2. */
export async function cgroupHierarchies(): Promise<string[]> {
  const lines = (await readFile('/proc/self/mounts', 'utf8')).split('\n').map((line) => line.split(' '));
  return lines.filter(([, , type]) => type === 'cgroup' || type === 'cgroup2').map(([, target]) => target!);
}

/** Folders of the cgroup `path` (`/name/…`) and all below it in every hierarchy, children before parents. */
export async function cgroupFolders(path: string): Promise<string[]> {
  const found: string[] = [];
  const walk = async (folder: string): Promise<void> => {
    const entries = await readdir(folder, { withFileTypes: true }).catch(() => undefined);
    if (entries === undefined) return;
    for (const entry of entries) if (entry.isDirectory()) await walk(join(folder, entry.name));
    found.push(folder);
  };
  for (const hierarchy of await cgroupHierarchies()) await walk(join(hierarchy, path));
  return found;
}

/** Names of the top cgroups, of all hierarchies, that start so. */
export async function cgroupsNamed(prefix: string): Promise<string[]> {
  const names = await Promise.all((await cgroupHierarchies()).map(listFolder));
  return [...new Set(names.flat().filter((name) => name.startsWith(prefix)))].sort();
}

/** Process ids in the cgroup folder itself. */
export async function processesOf(cgroupFolder: string): Promise<number[]> {
  try {
    const text = await readFile(join(cgroupFolder, 'cgroup.procs'), 'utf8');
    return text.split('\n').filter(Boolean).map(Number);
  } catch (error) {
    if (['ENOENT', 'ENODEV', 'EOPNOTSUPP'].includes(errnoOf(error) ?? '')) return [];
    throw error;
  }
}

/** Network links of the host, with the bridge they are in. */
export async function links(): Promise<{ name: string; master: string | undefined }[]> {
  const { stdout } = await exec('ip', ['-j', 'link', 'show'], { deadlineMs: 10_000 });
  const parsed = JSON.parse(stdout.toString('utf8')) as { ifname: string; master?: string }[];
  return parsed.map((link) => ({ name: link.ifname, master: link.master }));
}

export async function deleteLink(name: string): Promise<void> {
  await exec('ip', ['link', 'del', name], { deadlineMs: 10_000, okCodes: 'any' });
}

/** Names in /run/netns. */
export const namedNetworkNamespaces = (): Promise<string[]> => listFolder('/run/netns');

/** The nat table's lines, as iptables-save prints them; empty where there is no iptables. */
export async function natRules(): Promise<string[]> {
  try {
    const { stdout } = await exec('iptables-save', ['-t', 'nat'], { deadlineMs: 10_000, okCodes: 'any' });
    return stdout.toString('utf8').split('\n').filter(Boolean);
  } catch {
    return [];
  }
}

/** The rules whose comment names the CNI network, as the portmap and bridge plugins write it (`name: "network"`). */
export async function natRulesOf(network: string): Promise<string[]> {
  const named = (rule: string) => rule.replaceAll('\\"', '"').includes(`name: "${network}"`);
  return (await natRules()).filter((rule) => rule.startsWith('-A') && named(rule));
}

/** Removes the rules and chains that the portmap and bridge plugins made for the CNI network `network`. */
export async function removeNatRules(network: string): Promise<void> {
  const run = (args: string[]) =>
    exec('iptables', ['-w', '-t', 'nat', ...args], { deadlineMs: 15_000, okCodes: 'any' });
  const rules = await natRulesOf(network);
  const chains = new Set<string>();
  for (const rule of rules) {
    const target = / -j (CNI-[A-Za-z0-9-]+)/.exec(rule)?.[1];
    if (target !== undefined && /^CNI-(DN-)?[0-9a-f]/.test(target)) chains.add(target);
    await run(['-D', ...words(rule).slice(1)]);
  }
  for (const chain of chains) {
    await run(['-F', chain]);
    await run(['-X', chain]);
  }
}

/** Splits a line of iptables-save as a shell would; only double quotes occur. */
const words = (rule: string) =>
  [...rule.matchAll(/"((?:[^"\\]|\\.)*)"|(\S+)/g)].map(
    ([, quoted, plain]) => quoted?.replace(/\\(.)/g, '$1') ?? plain!,
  );
