/** Versions of the CNI specification: what keelson speaks and how they are ordered. */

/** The versions of results and configurations that are understood, oldest first. */
export const knownVersions = ['0.3.0', '0.3.1', '0.4.0', '1.0.0', '1.1.0'] as const;
export type CniVersion = (typeof knownVersions)[number];

export function isKnown(version: string): version is CniVersion {
  return (knownVersions as readonly string[]).includes(version);
}

/** True when `version` is `than` or newer. */
export function atLeast(version: CniVersion, than: CniVersion): boolean {
  return knownVersions.indexOf(version) >= knownVersions.indexOf(than);
}

/** The newest of `versions` that is known; undefined where none is. */
export function newest(versions: readonly string[]): CniVersion | undefined {
  return knownVersions.filter((version) => versions.includes(version)).at(-1);
}
