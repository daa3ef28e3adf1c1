/**
 * Specifications of the Container Device Interface (tags.cncf.io/container-device-interface, SPEC.md): what vendors write
 * down about devices, read and checked. Pure.
 */
import { parse } from 'yaml';
import { KeelsonError } from '../host/errors.ts';
import type { HookName } from '../oci/config.ts';

export interface CdiDeviceNode {
  /** In the container. */
  readonly path: string;
  /** Default: `path`. */
  readonly hostPath?: string;
  readonly type?: 'b' | 'c' | 'u' | 'p';
  readonly major?: number;
  readonly minor?: number;
  readonly fileMode?: number;
  /** Of rwm; default all. */
  readonly permissions?: string;
  readonly uid?: number;
  readonly gid?: number;
}

export interface CdiMount {
  readonly hostPath: string;
  readonly containerPath: string;
  readonly type?: string;
  readonly options: readonly string[];
}

export interface CdiHook {
  readonly hookName: HookName;
  readonly path: string;
  readonly args?: readonly string[];
  readonly env?: readonly string[];
  readonly timeout?: number;
}

export interface CdiEdits {
  /** `NAME=value`. */
  readonly env: readonly string[];
  readonly deviceNodes: readonly CdiDeviceNode[];
  readonly mounts: readonly CdiMount[];
  readonly hooks: readonly CdiHook[];
  readonly additionalGids: readonly number[];
  /** runtime-spec's `linux.intelRdt`. */
  readonly intelRdt?: Readonly<Record<string, unknown>>;
}

export interface CdiSpec {
  /** `vendor.com/class`. */
  readonly kind: string;
  /** By their names in it. */
  readonly devices: ReadonlyMap<string, CdiEdits>;
  /** For a container that has any of the devices. */
  readonly edits: CdiEdits;
}

const versions = /^v?(0\.[1-8]\.0|1\.[01]\.0)$/;
const hookNames = new Set([
  ...['prestart', 'createRuntime', 'createContainer', 'startContainer', 'poststart', 'poststop'],
]);
const vendorOrClass = /^[A-Za-z](?:[\w.-]*[A-Za-z0-9])?$/;
const deviceName = /^[A-Za-z0-9](?:[\w.:-]*[A-Za-z0-9])?$/;

/** Is it `vendor/class=name`? */
export function isQualifiedName(name: string): boolean {
  const [, vendor, device] = /^([^/=]+\/[^/=]+)=(.+)$/.exec(name) ?? [];
  return vendor !== undefined && isKind(vendor) && deviceName.test(device ?? '');
}

function isKind(kind: string): boolean {
  const [vendor = '', klass = '', ...more] = kind.split('/');
  return vendorOrClass.test(vendor) && vendorOrClass.test(klass) && more.length === 0;
}

/** Throws CONFIG_INVALID that names `source`. YAML and, as a part of it, JSON. */
export function parseCdiSpec(text: string, source: string): CdiSpec {
  const check = checks(source);
  let content: unknown;
  try {
    content = parse(text);
  } catch (error) {
    throw check.fail(error instanceof Error ? error.message : 'it is not YAML');
  }
  const spec = check.object(content, 'the content');
  const version = spec['cdiVersion'];
  if (typeof version !== 'string' || !versions.test(version)) {
    throw check.fail(`cdiVersion ${JSON.stringify(version)} is not supported`);
  }
  const kind = check.text(spec['kind'], 'kind');
  if (!isKind(kind)) throw check.fail(`kind ${JSON.stringify(kind)} is not vendor/class`);
  const devices = new Map<string, CdiEdits>();
  for (const [index, entry] of check.list(spec['devices'], 'devices').entries()) {
    const device = check.object(entry, `devices[${index}]`);
    const name = check.text(device['name'], `devices[${index}].name`);
    if (!deviceName.test(name)) throw check.fail(`${JSON.stringify(name)} cannot be the name of a device`);
    if (devices.has(name)) throw check.fail(`device ${name} is there twice`);
    devices.set(name, readEdits(check, device['containerEdits'], `device ${name}`));
  }
  if (devices.size === 0) throw check.fail('it has no devices');
  return { kind, devices, edits: readEdits(check, spec['containerEdits'] ?? {}, 'containerEdits') };
}

type Checks = ReturnType<typeof checks>;

function checks(source: string) {
  const fail = (why: string) => new KeelsonError('CONFIG_INVALID', `CDI specification ${source}: ${why}`);
  const text = (value: unknown, what: string): string => {
    if (typeof value === 'string' && value !== '' && !value.includes('\0')) return value;
    throw fail(`${what} must be a text`);
  };
  const list = (value: unknown, what: string): readonly unknown[] => {
    if (value === undefined || value === null) return [];
    if (Array.isArray(value)) return value;
    throw fail(`${what} must be a list`);
  };
  return {
    fail,
    text,
    list,
    object(value: unknown, what: string): Readonly<Record<string, unknown>> {
      if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
        return value as Readonly<Record<string, unknown>>;
      }
      throw fail(`${what} must be an object`);
    },
    texts: (value: unknown, what: string) => list(value, what).map((entry) => text(entry, what)),
    path(value: unknown, what: string): string {
      const path = text(value, what);
      if (path.startsWith('/')) return path;
      throw fail(`${what} ${JSON.stringify(path)} is not an absolute path`);
    },
    number(value: unknown, what: string): number | undefined {
      if (value === undefined || value === null) return undefined;
      if (Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) < 2 ** 32)
        return value as number;
      throw fail(`${what} must be a number`);
    },
    environment(value: unknown, what: string): readonly string[] {
      const entries = list(value, what).map((entry) => text(entry, what));
      const broken = entries.find((entry) => entry.indexOf('=') <= 0);
      if (broken === undefined) return entries;
      throw fail(`${what}: ${JSON.stringify(broken)} is not NAME=value`);
    },
  };
}

function readEdits(check: Checks, value: unknown, where: string): CdiEdits {
  const edits = check.object(value, where);
  const entries = (field: string) =>
    check
      .list(edits[field], `${where}: ${field}`)
      .map((entry, index) => check.object(entry, `${where}: ${field}[${index}]`));
  const deviceNodes = entries('deviceNodes').map((node): CdiDeviceNode => {
    const path = check.path(node['path'], `${where}: the path of a device node`);
    const { type, permissions } = node;
    if (type !== undefined && type !== '' && !(typeof type === 'string' && /^[bcup]$/.test(type))) {
      throw check.fail(`${where}: ${path} has the type ${JSON.stringify(type)}`);
    }
    if (permissions !== undefined && !(typeof permissions === 'string' && /^[rwm]{0,3}$/.test(permissions))) {
      throw check.fail(`${where}: ${path} has the permissions ${JSON.stringify(permissions)}`);
    }
    const number = (field: string) => check.number(node[field], `${where}: ${path}: ${field}`);
    return {
      path,
      hostPath: node['hostPath'] ? check.path(node['hostPath'], `${where}: hostPath of ${path}`) : undefined,
      type: (type as CdiDeviceNode['type']) || undefined,
      major: number('major'),
      minor: number('minor'),
      fileMode: number('fileMode'),
      permissions: (permissions as string) || undefined,
      uid: number('uid'),
      gid: number('gid'),
    };
  });
  const mounts = entries('mounts').map(
    (mount): CdiMount => ({
      hostPath: check.text(mount['hostPath'], `${where}: hostPath of a mount`),
      containerPath: check.path(mount['containerPath'], `${where}: containerPath of a mount`),
      type: mount['type'] ? check.text(mount['type'], `${where}: type of a mount`) : undefined,
      options: check.texts(mount['options'], `${where}: options of a mount`),
    }),
  );
  const hooks = entries('hooks').map((hook): CdiHook => {
    const hookName = check.text(hook['hookName'], `${where}: hookName`);
    if (!hookNames.has(hookName)) throw check.fail(`${where}: there is no hook ${JSON.stringify(hookName)}`);
    return {
      hookName: hookName as HookName,
      path: check.path(hook['path'], `${where}: the path of hook ${hookName}`),
      args:
        hook['args'] === undefined
          ? undefined
          : check.texts(hook['args'], `${where}: args of hook ${hookName}`),
      env:
        hook['env'] === undefined
          ? undefined
          : check.environment(hook['env'], `${where}: env of hook ${hookName}`),
      timeout: check.number(hook['timeout'], `${where}: timeout of hook ${hookName}`),
    };
  });
  const { intelRdt } = edits;
  return {
    env: check.environment(edits['env'], `${where}: env`),
    deviceNodes,
    mounts,
    hooks,
    additionalGids: check
      .list(edits['additionalGids'], `${where}: additionalGids`)
      .flatMap((gid) => check.number(gid, `${where}: additionalGids`) ?? []),
    intelRdt: intelRdt === undefined ? undefined : check.object(intelRdt, `${where}: intelRdt`),
  };
}
