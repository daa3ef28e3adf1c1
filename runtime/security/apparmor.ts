/** AppArmor: which profile a container runs under, and the default one. */
import { accessSync, constants } from 'node:fs';
import { readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { SecurityProfile } from '../api.ts';
import { describe, KeelsonError } from '../host/errors.ts';
import { exec } from '../host/exec.ts';

/** The name under which RuntimeDefault is loaded. */
export const defaultProfileName = 'keelson-default';

const loadDeadlineMs = 30_000;

export interface AppArmor {
  /** The kernel has it switched on and the loader is installed. */
  readonly enabled: boolean;
  /**
   * The profile's name for the spec; undefined: none. Loads the default one when it is first wanted. Where nothing is
   * said, containers that are not privileged get the default.
   * Throws CONTAINER_CONFIG_INVALID for a profile where the host has no AppArmor, or not that profile.
   */
  profileFor(
    profile: SecurityProfile | undefined,
    privileged: boolean,
    /** The OCI runtime was built with AppArmor; undefined where it does not say. */
    supported?: boolean,
  ): Promise<string | undefined>;
}

/** `root` is /, and something else in tests. */
export function makeAppArmor(options: { readonly tempDir: string; readonly root?: string }): AppArmor {
  const { tempDir, root = '/' } = options;
  const kernelFolder = join(root, 'sys/kernel/security/apparmor');
  const enabled = ['sbin/apparmor_parser', 'usr/sbin/apparmor_parser'].some(
    (path) => readable(join(root, path)) && readable(join(kernelFolder, 'profiles')),
  );
  let loading: Promise<void> | undefined;

  const loaded = async (name: string): Promise<boolean> =>
    hasProfile(await readFile(join(kernelFolder, 'profiles'), 'utf8'), name);

  const loadDefault = async () => {
    if (await loaded(defaultProfileName)) return;
    const own = await readFile('/proc/self/attr/current', 'utf8').catch(() => '');
    const text = defaultProfile({
      own: own.split(' ', 1)[0]?.replace(/[\0\n]/g, '') || 'unconfined',
      tunables: readable(join(root, 'etc/apparmor.d/tunables/global')),
      base: readable(join(root, 'etc/apparmor.d/abstractions/base')),
    });
    const file = join(tempDir, 'apparmor-profile');
    await writeFile(file, text, { mode: 0o600 });
    try {
      await exec('apparmor_parser', ['-Kr', file], { deadlineMs: loadDeadlineMs });
    } catch (error) {
      throw new KeelsonError(
        'CONTAINER_CREATE_FAILED',
        `the AppArmor profile ${defaultProfileName} cannot be loaded: ${describe(error)}`,
        { cause: error },
      );
    } finally {
      await rm(file, { force: true });
    }
  };

  return {
    enabled,
    async profileFor(profile, privileged, supported) {
      const { type, localhostRef = '' } = profile ?? { type: 'RuntimeDefault' as const };
      if (type === 'Unconfined') return undefined;
      if (!enabled || supported === false) {
        if (profile === undefined || privileged) return undefined;
        throw new KeelsonError(
          'CONTAINER_CONFIG_INVALID',
          `an AppArmor profile (${type === 'Localhost' ? localhostRef : type}) is wanted, but AppArmor is not supported ${enabled ? 'by the OCI runtime' : 'on this node'}`,
          { hint: 'switch AppArmor on in the kernel and install apparmor, or set the profile to Unconfined' },
        );
      }
      if (type === 'RuntimeDefault') {
        if (privileged) return undefined;
        loading ??= loadDefault().catch((error: unknown) => {
          loading = undefined;
          throw error;
        });
        await loading;
        return defaultProfileName;
      }
      const name = localhostRef.replace(/^localhost\//, '');
      if (name === '' || !(await loaded(name))) {
        throw new KeelsonError(
          'CONTAINER_CONFIG_INVALID',
          `AppArmor profile ${JSON.stringify(name)} is not loaded on this node`,
          { hint: 'load it with apparmor_parser' },
        );
      }
      return name;
    },
  };
}

/** Is `name` in the kernel's list, lines such as `docker-default (enforce)`? Pure. */
export function hasProfile(list: string, name: string): boolean {
  return list.split('\n').some((line) => line.startsWith(`${name} (`));
}

/**
 * What containers may do to the kernel's files under RuntimeDefault: the rules that Docker and containerd document
 * ("AppArmor security profiles for Docker"), in the language of apparmor.d(5). `own` is the profile of this process. Pure.
 */
export function defaultProfile(options: {
  readonly own: string;
  readonly tunables: boolean;
  readonly base: boolean;
}): string {
  const name = defaultProfileName;
  const signals = ['unconfined', 'runc', 'crun', options.own].map((peer) => `signal (receive) peer=${peer},`);
  const closed = ['sysrq-trigger', 'mem', 'kmem', 'kcore'].map((file) => `deny @{PROC}/${file} rwklx,`);
  // AppArmor has no "all but": everything in /sys but /sys/fs/cgroup, letter by letter.
  const sys = ['[^f]*', 'f[^s]*', 'fs/[^c]*', 'fs/c[^g]*', 'fs/cg[^r]*'].map(
    (glob) => `deny /sys/${glob}/** wklx,`,
  );
  const hidden = ['firmware', 'devices/virtual/powercap', 'kernel/security'].map(
    (folder) => `deny /sys/${folder}/** rwklx,`,
  );
  const rules = [
    ...(options.base ? ['#include <abstractions/base>'] : []),
    'network,',
    'capability,',
    'file,',
    'umount,',
    ...new Set(signals),
    `signal (send,receive) peer=${name},`,
    // In /proc: nothing directly, nothing but processes and sys, and of sys only kernel/shm*.
    'deny @{PROC}/* w,',
    'deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9]*}/** w,',
    'deny @{PROC}/sys/[^k]** w,',
    'deny @{PROC}/sys/kernel/{?,??,[^s][^h][^m]**} w,',
    ...closed,
    'deny mount,',
    ...sys,
    ...hidden,
    `ptrace (trace,tracedby,read,readby) peer=${name},`,
  ];
  return [
    options.tunables ? '#include <tunables/global>' : '@{PROC}=/proc/',
    `profile ${name} flags=(attach_disconnected,mediate_deleted) {`,
    ...rules.map((rule) => `  ${rule}`),
    '}',
    '',
  ].join('\n');
}

function readable(path: string): boolean {
  try {
    accessSync(path, constants.R_OK);
    return true;
  } catch {
    return false;
  }
}
