/** config.json of the runtime-spec (config.md, config-linux.md): the part of it that is used here. */
import type { OciSeccomp } from '../security/seccomp.ts';

export interface OciDevice {
  readonly path: string;
  /** `p`: a fifo, `u`: unbuffered, the same as `c`. */
  readonly type: 'b' | 'c' | 'u' | 'p';
  readonly major?: number;
  readonly minor?: number;
  readonly fileMode?: number;
  readonly uid?: number;
  readonly gid?: number;
}

export interface DeviceRule {
  readonly allow: boolean;
  readonly type?: 'a' | 'b' | 'c';
  readonly major?: number;
  readonly minor?: number;
  readonly access: string;
}

export interface OciIdMapping {
  readonly containerID: number;
  readonly hostID: number;
  readonly size: number;
}

export interface OciMount {
  readonly destination: string;
  readonly type: string;
  readonly source: string;
  readonly options: readonly string[];
  readonly uidMappings?: readonly OciIdMapping[];
  readonly gidMappings?: readonly OciIdMapping[];
}

export interface OciHook {
  readonly path: string;
  readonly args?: readonly string[];
  readonly env?: readonly string[];
  readonly timeout?: number;
}

export type HookName =
  | 'prestart'
  | 'createRuntime'
  | 'createContainer'
  | 'startContainer'
  | 'poststart'
  | 'poststop';

export interface OciSpec {
  readonly ociVersion: string;
  readonly process: {
    readonly terminal: boolean;
    readonly user: { readonly uid: number; readonly gid: number; readonly additionalGids: readonly number[] };
    readonly args: readonly string[];
    readonly env: readonly string[];
    readonly cwd: string;
    readonly capabilities: {
      readonly bounding: readonly string[];
      readonly effective: readonly string[];
      readonly permitted: readonly string[];
      /** Only what is ambient: more would let files hand on rights (CVE-2022-24769). */
      readonly inheritable?: readonly string[];
      readonly ambient?: readonly string[];
    };
    readonly noNewPrivileges: boolean;
    readonly rlimits?: readonly { readonly type: string; readonly soft: number; readonly hard: number }[];
    readonly oomScoreAdj?: number;
    readonly apparmorProfile?: string;
    readonly selinuxLabel?: string;
  };
  readonly root: { readonly path: string; readonly readonly: boolean };
  readonly mounts: readonly OciMount[];
  readonly hooks?: Partial<Readonly<Record<HookName, readonly OciHook[]>>>;
  readonly annotations: Readonly<Record<string, string>>;
  readonly linux: {
    readonly namespaces: readonly { readonly type: string; readonly path?: string }[];
    readonly uidMappings?: readonly OciIdMapping[];
    readonly gidMappings?: readonly OciIdMapping[];
    readonly cgroupsPath: string;
    readonly resources: Readonly<Record<string, unknown>> & { readonly devices: readonly DeviceRule[] };
    readonly devices: readonly OciDevice[];
    readonly maskedPaths: readonly string[];
    readonly readonlyPaths: readonly string[];
    readonly rootfsPropagation?: string;
    readonly seccomp?: OciSeccomp;
    readonly mountLabel?: string;
    readonly intelRdt?: Readonly<Record<string, unknown>>;
  };
}

/** runtime-spec's spelling of the CRI's mappings. */
export function idMappings(
  mappings: readonly { readonly containerId: number; readonly hostId: number; readonly length: number }[],
): OciIdMapping[] {
  return mappings.map(({ containerId, hostId, length }) => ({
    containerID: containerId,
    hostID: hostId,
    size: length,
  }));
}
