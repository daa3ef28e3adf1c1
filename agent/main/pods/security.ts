/** What the kernel of this host has to confine pods with, read once: a change needs a reboot. */
import { existsSync } from 'node:fs';
import { readdir, readFile } from 'node:fs/promises';
import { release } from 'node:os';
import { join } from 'node:path';
import type { AgentConfig } from '../../config/load.ts';
import { type SysctlAllowlist, sysctlAllowlist } from '../../pods/spec/sysctls.ts';

export interface KernelSecurity {
  readonly sysctls: SysctlAllowlist;
  readonly appArmor: boolean;
  /** Of /sys, hidden from containers: they tell what other tenants' processors do. */
  readonly maskedPaths: readonly string[];
  readonly selinux: boolean;
}

/** `root` is /, and something else in tests. Throws CONFIG_INVALID. */
export async function kernelSecurity(
  config: Pick<AgentConfig, 'allowedUnsafeSysctls'>,
  root = '/',
): Promise<KernelSecurity> {
  const cpus = join(root, 'sys/devices/system/cpu');
  const names = await readdir(cpus).catch(() => []);
  return {
    sysctls: sysctlAllowlist(config.allowedUnsafeSysctls, release()),
    appArmor: await hasAppArmor(root),
    maskedPaths: names
      .filter((name) => /^cpu\d+$/.test(name) && existsSync(join(cpus, name, 'thermal_throttle')))
      .map((name) => `/sys/devices/system/cpu/${name}/thermal_throttle`),
    selinux: existsSync(join(root, 'sys/fs/selinux/enforce')),
  };
}

async function hasAppArmor(root: string): Promise<boolean> {
  if (!existsSync(join(root, 'sys/kernel/security/apparmor'))) return false;
  const enabled = join(root, 'sys/module/apparmor/parameters/enabled');
  return (await readFile(enabled, 'utf8').catch(() => '')).startsWith('Y');
}
