/**
 * Network configurations as CNI defines them (CNI specification 1.1.0, section 1), read from text. Pure.
 *
 * Lists (`plugins`) are taken as they are; a single plugin's file (the older `.conf`) becomes a list of one, as
 * libcni does it.
 */
import { KeelsonError } from '../runtime/host/errors.ts';
import { type CniVersion, knownVersions } from './version.ts';

/** A plugin's own object of the list, with what keelson reads of it. */
export interface PluginConfig {
  readonly type: string;
  /** Names of the capability arguments that the plugin wants. */
  readonly capabilities: readonly string[];
  /** The type of the IPAM plugin that it calls, where it has one. */
  readonly ipamType?: string;
  /** The whole object, to be given to the plugin. */
  readonly raw: Readonly<Record<string, unknown>>;
}

export interface Network {
  readonly name: string;
  /** Versions that the configuration allows and keelson knows, oldest first; at least one. */
  readonly versions: readonly CniVersion[];
  readonly plugins: readonly PluginConfig[];
  readonly disableCheck: boolean;
  readonly disableGc: boolean;
  /** Plugins may also come from `<folder>/<name>/*.conf` (libcni 1.3). */
  readonly readsPluginFolder: boolean;
  /** The list as text: what the result cache keeps. */
  readonly text: string;
}

/** Names of networks and ids of containers (specification, section 1 and 2). */
const namePattern = /^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/;

export function isNetworkName(name: string): boolean {
  return namePattern.test(name) && name.length <= 128;
}

/** A program's file name, never a path. */
function isPluginType(type: unknown): type is string {
  return typeof type === 'string' && type !== '' && type !== '.' && type !== '..' && !/[/\0]/.test(type);
}

type Json = Readonly<Record<string, unknown>>;

function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function invalid(file: string, why: string, hint?: string): KeelsonError {
  return new KeelsonError('CNI_CONFIG_INVALID', `network configuration ${file}: ${why}`, { hint });
}

function readObject(text: string, file: string): Json {
  if (text.trim() === '') throw invalid(file, 'is empty', 'a power cut may have cut it off; write it again');
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw invalid(file, `is not JSON: ${(error as Error).message}`);
  }
  if (!isObject(value)) throw invalid(file, 'must be a JSON object');
  return value;
}

function readPlugin(value: unknown, where: string, file: string): PluginConfig {
  if (!isObject(value)) throw invalid(file, `${where} must be an object`);
  const { type, capabilities = {}, ipam } = value;
  if (!isPluginType(type)) {
    throw invalid(file, `${where} needs "type", the file name of a plugin without a folder`);
  }
  if (
    !isObject(capabilities) ||
    Object.values(capabilities).some((supported) => typeof supported !== 'boolean')
  ) {
    throw invalid(file, `"capabilities" of ${where} must map names to true or false`);
  }
  const ipamType = isObject(ipam) ? ipam['type'] : undefined;
  return {
    type,
    capabilities: Object.keys(capabilities).filter((name) => capabilities[name] === true),
    ipamType: isPluginType(ipamType) ? ipamType : undefined,
    raw: value,
  };
}

function readFlag(list: Json, key: string, file: string): boolean {
  const value = list[key];
  const text = typeof value === 'string' ? value.toLowerCase() : value;
  if (text === undefined || text === false || text === 'false') return false;
  if (text === true || text === 'true') return true;
  throw invalid(file, `"${key}" must be true or false`);
}

function readVersions(list: Json, file: string): CniVersion[] {
  const { cniVersion, cniVersions = [] } = list;
  if (cniVersion !== undefined && typeof cniVersion !== 'string') {
    throw invalid(file, '"cniVersion" must be a string');
  }
  if (!Array.isArray(cniVersions) || cniVersions.some((version) => typeof version !== 'string')) {
    throw invalid(file, '"cniVersions" must be a list of strings');
  }
  const offered: string[] = [...cniVersions, ...(cniVersion === undefined ? [] : [cniVersion])];
  const usable = knownVersions.filter((version) => offered.includes(version));
  if (usable.length === 0) {
    throw invalid(
      file,
      offered.length === 0
        ? '"cniVersion" is missing'
        : `none of its versions (${offered.join(', ').slice(0, 200)}) is supported`,
      `set "cniVersion" to one of ${knownVersions.filter((version) => version !== '0.3.0').join(', ')}`,
    );
  }
  return usable;
}

/** Reads a configuration list or a single configuration. Throws CNI_CONFIG_INVALID naming `file`. */
export function parseNetwork(text: string, file: string): Network {
  const read = readObject(text, file);
  const single = !('plugins' in read) && 'type' in read;
  const list: Json = single
    ? { name: read['name'], cniVersion: read['cniVersion'], plugins: [read], loadOnlyInlinedPlugins: true }
    : read;
  const name = list['name'];
  if (typeof name !== 'string' || !isNetworkName(name)) {
    throw invalid(
      file,
      '"name" must begin with a letter or digit and hold only letters, digits, ".", "_", "-"',
    );
  }
  const readsPluginFolder = !readFlag(list, 'loadOnlyInlinedPlugins', file);
  const plugins = list['plugins'] ?? (readsPluginFolder ? [] : undefined);
  if (!Array.isArray(plugins) || (plugins.length === 0 && ('plugins' in list || !readsPluginFolder))) {
    throw invalid(file, '"plugins" must be a list of at least one plugin');
  }
  return {
    name,
    versions: readVersions(list, file),
    plugins: plugins.map((plugin, index) => readPlugin(plugin, `plugin ${index + 1}`, file)),
    disableCheck: readFlag(list, 'disableCheck', file),
    disableGc: readFlag(list, 'disableGC', file),
    readsPluginFolder,
    text: single ? JSON.stringify(list) : text,
  };
}

/** Adds a plugin of the network's own folder to the end of its list. Throws CNI_CONFIG_INVALID naming `file`. */
export function addPlugin(network: Network, text: string, file: string): Network {
  const plugin = readPlugin(readObject(text, file), 'the plugin', file);
  const list = readObject(network.text, file);
  const plugins = [...network.plugins, plugin];
  return {
    ...network,
    plugins,
    // The cached list must be complete by itself: the folder may have changed by the time of the DEL.
    text: JSON.stringify({
      ...list,
      plugins: plugins.map(({ raw }) => raw),
      loadOnlyInlinedPlugins: true,
    }),
  };
}
