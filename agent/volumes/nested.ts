/** Mount points that a container needs inside a volume that it cannot write to. Pure. */
import { posix } from 'node:path';
import type { Pod } from '../apiserver/types.ts';

/**
 * The folders inside `volume` on which some container mounts another volume (kubelet's MakeNestedMountpoints): a
 * runtime cannot make them where the volume is read-only. Relative paths, outermost ones only.
 */
export function nestedMountPoints(pod: Pod, volume: string): readonly string[] {
  const found = new Set<string>();
  for (const { volumeMounts = [] } of [
    ...(pod.spec?.initContainers ?? []),
    ...(pod.spec?.containers ?? []),
  ]) {
    const paths = volumeMounts.map(({ mountPath }) => posix.resolve('/', mountPath));
    volumeMounts.forEach((own, index) => {
      if (own.name !== volume || own.subPath || own.subPathExpr) return;
      const prefix = paths[index] === '/' ? '/' : `${paths[index]}/`;
      const inner = paths.filter((path) => path.startsWith(prefix) && path !== paths[index]);
      for (const path of inner) {
        const isOutermost = !inner.some((other) => path.startsWith(`${other}/`));
        const below = path.slice(prefix.length);
        if (isOutermost && !below.startsWith('..')) found.add(below);
      }
    });
  }
  return [...found];
}
