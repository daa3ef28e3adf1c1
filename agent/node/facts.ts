/**
 * What this machine is and has. Read from /proc, /sys and /etc directly: that takes under a millisecond and no
 * memory, where systeminformation costs 9 MiB and starts a shell for the same few values.
 */
import { readFile, statfs } from 'node:fs/promises';
import { arch, networkInterfaces, release } from 'node:os';
import { join } from 'node:path';
import { listFolder } from '../../runtime/host/files.ts';
import { type HostNetwork, internalIps, splitNodeIp } from './addresses.ts';
import {
  countCpus,
  hugepageResource,
  parseDefaultRoutes4,
  parseDefaultRoutes6,
  parseMeminfo,
  parseOsRelease,
  parseTaskCount,
} from './procfs.ts';

/** What does not change while the machine runs. */
export interface MachineFacts {
  /** As Go names it: `amd64`, `arm64`. */
  readonly architecture: string;
  readonly machineId: string;
  readonly systemUuid: string;
  readonly bootId: string;
  readonly kernelVersion: string;
  readonly osImage: string;
}

export interface FilesystemFacts {
  readonly capacityBytes: number;
  readonly availableBytes: number;
  readonly inodes: number;
  readonly inodesFree: number;
}

/** What is looked at anew for each status. */
export interface NodeFacts extends MachineFacts {
  readonly cpus: number;
  readonly memoryBytes: number;
  readonly memoryAvailableBytes: number;
  readonly swapBytes: number;
  /** Bytes by resource name, such as `hugepages-2Mi`. */
  readonly hugepages: Readonly<Record<string, number>>;
  /** Of pods' volumes and logs. */
  readonly nodefs: FilesystemFacts;
  /** Of images and containers. */
  readonly imagefs: FilesystemFacts;
  readonly tasks: number;
  readonly maxTasks: number;
  /** InternalIPs, primary first. */
  readonly addresses: readonly string[];
}

export interface FactsOptions {
  /** Where /proc, /sys and /etc are. Default `/`. */
  readonly root?: string;
  /** Existing folder on the file system of pods' volumes. */
  readonly kubeletDir: string;
  /** Existing folder on the file system of images and containers. */
  readonly stateDir: string;
  /** `nodeIP` of the configuration. */
  readonly nodeIP?: string;
  readonly interfaces?: () => HostNetwork['interfaces'];
}

export interface FactsReader {
  /** Never throws: what cannot be read is zero or empty. */
  read(): Promise<NodeFacts>;
}

/** Go's names of architectures, where they are not Node's. */
const goArchitectures: Readonly<Record<string, string>> = {
  x64: 'amd64',
  ia32: '386',
  ppc64: 'ppc64le',
  mipsel: 'mipsle',
};
const none: FilesystemFacts = { capacityBytes: 0, availableBytes: 0, inodes: 0, inodesFree: 0 };

export function makeFactsReader(options: FactsOptions): FactsReader {
  const { root = '/', interfaces = networkInterfaces } = options;
  const wanted = splitNodeIp(options.nodeIP);
  let machine: Promise<MachineFacts> | undefined;
  const text = (path: string): Promise<string> => readFile(join(root, path), 'utf8').catch(() => '');

  async function first(...paths: readonly string[]): Promise<string> {
    for (const path of paths) {
      const found = (await text(path)).replaceAll('\0', '').trim();
      if (found !== '') return found;
    }
    return '';
  }

  async function readMachine(): Promise<MachineFacts> {
    const [machineId, productUuid, bootId, osRelease] = await Promise.all([
      first('etc/machine-id', 'var/lib/dbus/machine-id'),
      // cAdvisor's order: DMI, device trees of POWER and of s390-like machines, then the machine id.
      first('sys/class/dmi/id/product_uuid', 'proc/device-tree/system-id', 'proc/device-tree/vm,uuid'),
      first('proc/sys/kernel/random/boot_id'),
      first('etc/os-release', 'usr/lib/os-release'),
    ]);
    const os = parseOsRelease(osRelease);
    return {
      architecture: goArchitectures[arch()] ?? arch(),
      machineId,
      systemUuid: productUuid || machineId,
      bootId,
      kernelVersion: release(),
      osImage: os['PRETTY_NAME'] || os['NAME'] || 'Linux',
    };
  }

  async function filesystem(path: string): Promise<FilesystemFacts> {
    try {
      const stats = await statfs(path);
      return {
        capacityBytes: stats.blocks * stats.bsize,
        availableBytes: stats.bavail * stats.bsize,
        inodes: stats.files,
        inodesFree: stats.ffree,
      };
    } catch {
      return none;
    }
  }

  async function hugepages(): Promise<Readonly<Record<string, number>>> {
    const folder = 'sys/kernel/mm/hugepages';
    const found: Record<string, number> = {};
    for (const name of await listFolder(join(root, folder)).catch(() => [])) {
      const resource = hugepageResource(name);
      if (resource === undefined) continue;
      const pages = Number((await text(`${folder}/${name}/nr_hugepages`)).trim());
      found[resource.name] = Number.isSafeInteger(pages) ? pages * resource.pageBytes : 0;
    }
    return found;
  }

  return {
    async read() {
      machine ??= readMachine();
      const [fixed, meminfo, online, loadavg, pidMax, threadsMax, huge, nodefs, imagefs, routes4, routes6] =
        await Promise.all([
          machine,
          text('proc/meminfo'),
          text('sys/devices/system/cpu/online'),
          text('proc/loadavg'),
          text('proc/sys/kernel/pid_max'),
          text('proc/sys/kernel/threads-max'),
          hugepages(),
          filesystem(options.kubeletDir),
          filesystem(options.stateDir),
          text('proc/net/route'),
          text('proc/net/ipv6_route'),
        ]);
      const memory = parseMeminfo(meminfo);
      const limits = [pidMax, threadsMax].map((value) => Number(value.trim())).filter((value) => value > 0);
      return {
        ...fixed,
        cpus: countCpus(online) ?? 1,
        memoryBytes: memory['MemTotal'] ?? 0,
        memoryAvailableBytes: memory['MemAvailable'] ?? memory['MemFree'] ?? 0,
        swapBytes: memory['SwapTotal'] ?? 0,
        hugepages: huge,
        nodefs,
        imagefs,
        tasks: parseTaskCount(loadavg) ?? 0,
        maxTasks: limits.length === 0 ? 0 : Math.min(...limits),
        addresses: internalIps(wanted, {
          interfaces: interfaces(),
          routes4: parseDefaultRoutes4(routes4),
          routes6: parseDefaultRoutes6(routes6),
        }),
      };
    },
  };
}
