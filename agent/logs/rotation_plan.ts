/** Which files of a container's log are kept, compressed and removed: kubelet's rules (pkg/kubelet/logs). Pure. */

export interface RotationPlan {
  /** Names to remove, before anything else. */
  readonly remove: readonly string[];
  /** Names to compress to `<name>.gz`. */
  readonly compress: readonly string[];
  /** The name that the current file gets. It stays as it is until the next time: somebody may still read it. */
  readonly rotated: string;
}

/**
 * `name` is the current file, `names` all in its folder, `maxFiles` counts the current file and the one that is to
 * take its place. The names of rotated files are in the order of time.
 */
export function planRotation(
  name: string,
  names: readonly string[],
  maxFiles: number,
  nowMs: number,
): RotationPlan {
  const own = names.filter((one) => one.startsWith(`${name}.`)).sort();
  // What a crash left: half a compression, or a file that has been compressed already.
  const unused = own.filter((one) => one.endsWith('.tmp') || own.includes(`${one}.gz`));
  const used = own.filter((one) => !unused.includes(one));
  const excess = used.slice(0, Math.max(0, used.length - Math.max(0, maxFiles - 2)));
  const kept = used.slice(excess.length);
  const stamp = new Date(nowMs).toISOString().replace(/[-:]/g, '').replace('T', '-').slice(0, 15);
  return {
    remove: [...unused, ...excess],
    compress: kept.filter((one) => !one.endsWith('.gz')),
    rotated: `${name}.${stamp}`,
  };
}
