/** What an OCI runtime can do, as it says itself (runtime-spec features.md, `runc features`). */
import { release } from 'node:os';

export interface OciFeatures {
  /** The mount option `rro`, on a kernel that has it. */
  readonly recursiveReadonly: boolean;
  /** Idmapped mounts with mappings of their own, and user namespaces: what pods with hostUsers: false need. */
  readonly idmap: boolean;
  /** Undefined: it does not say. */
  readonly seccomp: boolean | undefined;
  readonly apparmor: boolean | undefined;
}

/** Of a runtime that does not say. */
export const noFeatures: OciFeatures = {
  recursiveReadonly: false,
  idmap: false,
  seccomp: undefined,
  apparmor: undefined,
};

/** From what `features` prints; `kernel` as uname -r. Pure; anything that is not of the form counts as not said. */
export function parseFeatures(text: string, kernel = release()): OciFeatures {
  let said: unknown;
  try {
    said = JSON.parse(text);
  } catch {
    return noFeatures;
  }
  const at = (value: unknown, ...path: string[]): unknown =>
    path.reduce<unknown>(
      (inner, key) =>
        typeof inner === 'object' && inner !== null ? (inner as Record<string, unknown>)[key] : undefined,
      value,
    );
  const has = (list: unknown, word: string) => Array.isArray(list) && list.includes(word);
  const enabled = (module: string) => {
    const value = at(said, 'linux', module, 'enabled');
    return typeof value === 'boolean' ? value : undefined;
  };
  return {
    // mount_setattr(2) with AT_RECURSIVE.
    recursiveReadonly: has(at(said, 'mountOptions'), 'rro') && isSince(kernel, 5, 12),
    idmap:
      at(said, 'linux', 'mountExtensions', 'idmap', 'enabled') === true &&
      has(at(said, 'linux', 'namespaces'), 'user') &&
      // Idmapped layers below an overlay.
      isSince(kernel, 5, 19),
    seccomp: enabled('seccomp'),
    apparmor: enabled('apparmor'),
  };
}

/**
 * Of a runtime without a `features` command, from what `--version` prints. That is crun before 1.8.6: what 1.8 can do is
 * tested with 1.8.1. Pure.
 */
export function featuresOfVersion(text: string, kernel = release()): OciFeatures {
  const version = /^crun version (\d+\.\d+)/.exec(text)?.[1];
  if (version === undefined || !isSince(version, 1, 8)) return noFeatures;
  return {
    recursiveReadonly: isSince(kernel, 5, 12),
    idmap: isSince(kernel, 5, 19),
    seccomp: text.includes('+SECCOMP'),
    apparmor: text.includes('+APPARMOR'),
  };
}

function isSince(kernel: string, major: number, minor: number): boolean {
  const [a = 0, b = 0] = kernel.split('.').map((part) => Number.parseInt(part, 10));
  return a > major || (a === major && b >= minor);
}
