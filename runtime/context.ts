/** What all parts of the runtime work with: where things lie, what the host offers, which programs run. */
import { accessSync, constants, readFileSync, readlinkSync, realpathSync, statSync } from 'node:fs';
import { basename, delimiter, dirname, isAbsolute, join } from 'node:path';
import type { Cni } from '../cni/network.ts';
import type { EmbeddedImages } from '../images/service.ts';
import type { ContainerEvent, PodSandboxMetadata } from './api.ts';
import type { CdiRegistry } from './cdi/registry.ts';
import type { Cgroups } from './host/cgroups.ts';
import type { Clock } from './host/clock.ts';
import { isError, KeelsonError } from './host/errors.ts';
import type { Logger } from './host/log.ts';
import type { Patience } from './host/mounts/patience.ts';
import { type MountView, makeMountView } from './monitor/view.ts';
import { missingProgram } from './oci/conmon.ts';
import { makeOciRuntime, type OciRuntime } from './oci/runc.ts';
import { capabilitiesIn } from './oci/security.ts';
import type { HostFacts } from './oci/spec.ts';
import type { makeAccounts } from './oci/user.ts';
import type { ContainerFolders } from './rootfs.ts';
import type { AppArmor } from './security/apparmor.ts';
import type { Selinux } from './security/selinux.ts';
import type { State } from './state.ts';

/** Folders of the runtime; `runDir` may be lost at a reboot, `stateDir` not. */
export interface Folders {
  readonly runDir: string;
  readonly exits: string;
  /** The folder that holds one folder for each sandbox. */
  readonly sandboxes: string;
  readonly bundles: string;
  readonly data: string;
  sandbox(id: string): string;
  container(id: string): ContainerFolders;
  /** Where the OCI runtime of a handler keeps its own state. */
  ociRoot(handler: string): string;
}

export function layOut(runDir: string, stateDir: string): Folders {
  const sandboxes = join(runDir, 'sandboxes');
  const bundles = join(runDir, 'containers');
  const data = join(stateDir, 'containers');
  return {
    runDir,
    exits: join(runDir, 'exits'),
    sandboxes,
    bundles,
    data,
    sandbox: (id) => join(sandboxes, id),
    container: (id) => ({
      bundle: join(bundles, id),
      rootfs: join(bundles, id, 'rootfs'),
      data: join(data, id),
    }),
    ociRoot: (handler) => join(runDir, 'oci', handler),
  };
}

export interface Programs {
  /** The OCI runtime of a handler; '' means runc. Throws INVALID_ARGUMENT or DEPENDENCY_MISSING. */
  runtimeFor(handler: string): OciRuntime;
  /** Absolute path. Throws DEPENDENCY_MISSING. */
  conmon(): string;
  catatonit(): string;
  /** The missing ones among those that every container needs, as errors. */
  missing(): KeelsonError[];
}

export interface Context {
  readonly state: State;
  readonly images: EmbeddedImages;
  readonly cni: Cni;
  readonly cgroups: Cgroups;
  readonly cgroupDriver: 'cgroupfs' | 'systemd';
  readonly folders: Folders;
  readonly programs: Programs;
  readonly host: HostFacts;
  readonly patience: Patience;
  readonly accountsOf: ReturnType<typeof makeAccounts>;
  readonly apparmor: AppArmor;
  readonly selinux: Selinux;
  readonly cdi: CdiRegistry;
  readonly bootId: string;
  /** The node's own name. */
  readonly hostname: string;
  readonly log: Logger;
  readonly clock: Clock;
  emit(type: ContainerEvent['type'], id: string, sandbox: PodSandboxMetadata | undefined): void;
  /** Logs `message` the first time only. */
  warnOnce(message: string, facts?: object): void;
}

/** Absolute path of `program`, searched on the PATH; undefined where it is not. */
export function findProgram(program: string): string | undefined {
  const places = isAbsolute(program)
    ? [program]
    : [...(process.env['PATH'] ?? '').split(delimiter), '/usr/sbin', '/usr/bin', '/sbin', '/bin'].map(
        (folder) => join(folder || '/', program),
      );
  return places.find((path) => {
    try {
      accessSync(path, constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

/** Programs are looked up when first needed, and again while they are missing: they may be installed meanwhile. */
export function makePrograms(options: {
  readonly handlers: Readonly<Record<string, { readonly path: string }>>;
  readonly conmon: string;
  readonly folders: Folders;
  readonly systemdCgroup: boolean;
  readonly view?: MountView;
}): Programs {
  const { handlers, folders, systemdCgroup, view } = options;
  const paths = new Map<string, string>();
  const runtimes = new Map<string, OciRuntime>();
  const locate = (program: string): string => {
    const path = paths.get(program) ?? findProgram(program);
    if (path === undefined) throw missingProgram(program);
    paths.set(program, path);
    return path;
  };
  const runtimeFor = (wanted: string): OciRuntime => {
    const handler = wanted === '' ? 'runc' : wanted;
    const known = runtimes.get(handler);
    if (known !== undefined) return known;
    const entry = Object.hasOwn(handlers, handler) ? handlers[handler] : undefined;
    if (entry === undefined) {
      throw new KeelsonError('INVALID_ARGUMENT', `no runtime for the handler ${JSON.stringify(handler)}`, {
        hint: `this node has ${Object.keys(handlers).join(', ')}; see the pod's runtimeClassName`,
      });
    }
    const path = locate(entry.path);
    const runtime = makeOciRuntime({
      path,
      root: folders.ociRoot(handler),
      systemdCgroup,
      // Wrappers and virtual machines may look anywhere.
      view: ['runc', 'crun'].includes(basename(path)) ? view : undefined,
    });
    runtimes.set(handler, runtime);
    return runtime;
  };
  return {
    runtimeFor,
    conmon: () => locate(options.conmon),
    catatonit: () => locate('catatonit'),
    missing() {
      const errors: KeelsonError[] = [];
      for (const check of [() => runtimeFor(''), () => locate(options.conmon)]) {
        try {
          check();
        } catch (error) {
          if (!(error instanceof KeelsonError)) throw error;
          errors.push(error);
        }
      }
      return errors;
    },
  };
}

/** Undefined, with a line in the log, where the host does not let us have one: then the host's own mounts are used. */
export function openMountView(
  { runDir, data }: Folders,
  handlers: Readonly<Record<string, { readonly path: string }>>,
  further: readonly string[],
  patience: Patience,
  log: Logger,
): MountView | undefined {
  const nsenter = findProgram('nsenter');
  // nsenter finds us by our pid: in another PID namespace than that of /proc it would not.
  if (nsenter === undefined || readlinkSync('/proc/self') !== String(process.pid)) return undefined;
  const programs = Object.values(handlers).flatMap(({ path }) => findProgram(path) ?? []);
  try {
    const own = [runDir, data, ...further].flatMap((path) => [path, withoutLinks(path)]);
    const folders = [...own, ...programs.map((path) => dirname(withoutLinks(path)))];
    const view = makeMountView(folders, nsenter, patience);
    const [here, there] = [statSync(runDir), view.within(() => statSync(runDir, { throwIfNoEntry: false }))];
    if (here.dev === there?.dev && here.ino === there.ino) return view;
    view.close();
    throw new KeelsonError('SYSCALL_FAILED', `${runDir} is not to be seen`);
  } catch (error) {
    if (!isError(error, 'SYSCALL_FAILED')) throw error;
    log.warn(
      { err: error },
      'OCI runtimes see all mounts of the host: starts take longer where there are many',
    );
    return undefined;
  }
}

function withoutLinks(path: string): string {
  try {
    return realpathSync(path);
  } catch {
    return path; // It may come to be there.
  }
}

/** Looks at the host once. `cgroupRoot` is where the cgroup tree is mounted. */
export function readHostFacts(cgroupVersion: 1 | 2, cgroupRoot = '/sys/fs/cgroup'): HostFacts {
  const status = readFileSync('/proc/self/status', 'latin1');
  const mask = (name: string) => new RegExp(`^${name}:\\s*([0-9a-f]+)$`, 'm').exec(status)?.[1] ?? '0';
  const bounding = capabilitiesIn(mask('CapBnd'));
  const readable = (path: string) => {
    try {
      accessSync(path);
      return true;
    } catch {
      return false;
    }
  };
  const controllers =
    cgroupVersion === 2 ? readFileSync(join(cgroupRoot, 'cgroup.controllers'), 'latin1') : '';
  return {
    capabilities: capabilitiesIn(mask('CapEff')).filter((name) => bounding.includes(name)),
    openFiles: openFilesIn(readFileSync('/proc/self/limits', 'latin1')),
    oomScoreAdj: Number(readFileSync('/proc/self/oom_score_adj', 'latin1')),
    cgroupVersion,
    hugetlb:
      cgroupVersion === 2
        ? /\bhugetlb\b/.test(controllers)
        : readable(join(cgroupRoot, 'hugetlb/cgroup.procs')),
    swapLimit:
      cgroupVersion === 2
        ? readable('/proc/swaps') && /\bmemory\b/.test(controllers)
        : readable(join(cgroupRoot, 'memory/memory.memsw.limit_in_bytes')),
  };
}

/** The hard limit in the text of /proc/<pid>/limits. Pure. */
export function openFilesIn(limits: string): number | undefined {
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(limits)?.[1];
  if (hard === undefined) return undefined;
  return hard === 'unlimited' ? Number.MAX_SAFE_INTEGER : Number(hard);
}

export function readBootId(): string {
  return readFileSync('/proc/sys/kernel/random/boot_id', 'latin1').trim();
}
