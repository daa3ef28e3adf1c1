/** What CDI devices change in a container's config.json. */
import { KeelsonError } from '../host/errors.ts';
import type { DeviceRule, OciDevice, OciHook, OciMount, OciSpec } from '../oci/config.ts';
import { deviceAt } from '../oci/devices.ts';
import type { CdiDeviceNode, CdiEdits } from './spec.ts';

/** Looks up the device nodes and applies everything, in order. Throws CONTAINER_CONFIG_INVALID for nodes that are not there. */
export async function injectDevices(spec: OciSpec, all: readonly CdiEdits[]): Promise<OciSpec> {
  let result = spec;
  for (const edits of all) {
    const nodes = await Promise.all(edits.deviceNodes.map((node) => completeNode(node, spec.process.user)));
    result = applyEdits(result, edits, nodes);
  }
  return result;
}

export type CompleteNode = OciDevice & { readonly access: string };

/** Pure; `nodes` are those of `edits`, complete. */
export function applyEdits(spec: OciSpec, edits: CdiEdits, nodes: readonly CompleteNode[]): OciSpec {
  const env = new Map(spec.process.env.map((entry) => [entry.split('=', 1)[0]!, entry]));
  for (const entry of edits.env) env.set(entry.split('=', 1)[0]!, entry);
  const places = new Set(nodes.map(({ path }) => path));
  const rules = nodes.flatMap(({ type, major, minor, access }): DeviceRule[] =>
    type === 'p' ? [] : [{ allow: true, type: type === 'b' ? 'b' : 'c', major, minor, access }],
  );
  const mounts = edits.mounts.map(({ hostPath, containerPath, type, options }): OciMount => {
    const bound = options.includes('bind') || options.includes('rbind');
    const plain = type === undefined || type === 'bind' || type === 'none';
    return {
      destination: containerPath,
      source: hostPath,
      type: plain ? 'bind' : type,
      options: plain && !bound ? ['rbind', ...options] : options,
    };
  });
  const covered = new Set(mounts.map(({ destination }) => destination));
  const hooks: Record<string, readonly OciHook[]> = { ...spec.hooks };
  for (const { hookName, ...hook } of edits.hooks) hooks[hookName] = [...(hooks[hookName] ?? []), hook];
  const { user } = spec.process;
  return {
    ...spec,
    process: {
      ...spec.process,
      env: [...env.values()],
      user: {
        ...user,
        // 0 would give rights that nobody asked for.
        additionalGids: [
          ...new Set([...user.additionalGids, ...edits.additionalGids.filter((gid) => gid !== 0)]),
        ],
      },
    },
    mounts:
      mounts.length === 0
        ? spec.mounts
        : [...spec.mounts.filter(({ destination }) => !covered.has(destination)), ...mounts].sort(
            (a, b) => depth(a) - depth(b),
          ),
    ...(edits.hooks.length > 0 ? { hooks } : {}),
    linux: {
      ...spec.linux,
      devices: [
        ...spec.linux.devices.filter(({ path }) => !places.has(path)),
        ...nodes.map(({ access: _, ...device }) => device),
      ],
      resources: { ...spec.linux.resources, devices: [...spec.linux.resources.devices, ...rules] },
      ...(edits.intelRdt === undefined ? {} : { intelRdt: edits.intelRdt }),
    },
  };
}

function depth({ destination }: OciMount): number {
  return destination.split('/').filter((part) => part !== '').length;
}

async function completeNode(
  node: CdiDeviceNode,
  user: { readonly uid: number; readonly gid: number },
): Promise<CompleteNode> {
  const hostPath = node.hostPath ?? node.path;
  const { type, major = 0 } = node;
  const whole = type !== undefined && (major !== 0 || type === 'p');
  const found = whole ? undefined : await deviceAt(hostPath, node.path);
  if (!whole && (found === undefined || (type !== undefined && (type === 'u' ? 'c' : type) !== found.type))) {
    throw new KeelsonError(
      'CONTAINER_CONFIG_INVALID',
      `CDI device node ${hostPath} is not there, or is no ${type === 'b' ? 'block' : type === 'c' ? 'character' : ''} device`,
    );
  }
  return {
    path: node.path,
    type: type ?? found!.type,
    major: whole ? major : found?.major,
    minor: whole ? (node.minor ?? 0) : found?.minor,
    fileMode: node.fileMode,
    uid: node.uid ?? (user.uid > 0 ? user.uid : undefined),
    gid: node.gid ?? (user.gid > 0 ? user.gid : undefined),
    access: node.permissions ?? 'rwm',
  };
}
