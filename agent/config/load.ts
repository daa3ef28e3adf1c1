/** Reads the configuration file into an `AgentConfig` that is complete and right, or says all that is wrong. */
import { readFile, stat } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import type { LogLevel } from '../../runtime/host/log.ts';
import { parseDuration } from './duration.ts';
import type { Fields, Findings, Path } from './field.ts';
import { nearest } from './nearest.ts';
import { checkRules } from './rules.ts';
import { type ConfigValues, type RawConfig, schema } from './schema.ts';
import { yamlParser } from './yaml.ts';

/** Every field has its value: durations in milliseconds, quantities as strings. */
export interface AgentConfig extends Omit<ConfigValues, 'cgroupDriver'> {
  readonly cgroupDriver: 'cgroupfs' | 'systemd';
  /** `keelson.nodeName`, else `keelson.hostnameOverride`, else the host's name in lower case. */
  readonly nodeName: string;
  /** From logging.verbosity: 0 to 3 info, 4 and 5 debug, above trace. */
  readonly logLevel: LogLevel;
  /** For the log, once it is open: fields that are set and that keelson does not act on. */
  readonly warnings: readonly string[];
}

export interface LoadOptions {
  /** Where the host is looked at for the default cgroupDriver. Default `/`. */
  readonly hostRoot?: string;
}

/** A configuration of this size is not one. */
const maxBytes = 1 << 20;

/**
 * Reads `file` (YAML or JSON; `undefined`: defaults only) with `overrides` laid over it: maps are merged, all else
 * is replaced. Throws CONFIG_INVALID that tells every fault with its path, its line, and for an unknown field the
 * nearest known one; `details.fields` has the paths.
 */
export async function loadConfig(
  file: string | undefined,
  overrides: RawConfig = {},
  options: LoadOptions = {},
): Promise<AgentConfig> {
  const parsed =
    file === undefined ? { value: {}, lineOf: () => undefined } : await parse(file, await read(file));
  const { values, warnings } = readConfig(merge(parsed.value, overrides), {
    name: file ?? 'the configuration',
    lineOf: parsed.lineOf,
  });
  const { keelson } = values;
  const nodeName = keelson.nodeName ?? keelson.hostnameOverride ?? hostname().trim().toLowerCase();
  return {
    ...values,
    cgroupDriver:
      (values.cgroupDriver as AgentConfig['cgroupDriver'] | undefined) ??
      (await hostCgroupDriver(options.hostRoot ?? '/')),
    nodeName,
    logLevel: logLevelOf(values.logging.verbosity),
    warnings,
  };
}

interface Source {
  /** What the values came from, for messages. */
  readonly name: string;
  lineOf(path: Path): number | undefined;
}

/** Values and warnings of an already parsed document. Throws CONFIG_INVALID. Pure. */
export function readConfig(
  document: unknown,
  source: Source,
): { values: ConfigValues; warnings: readonly string[] } {
  const faults: { path: Path; message: string }[] = [];
  const warnings: string[] = [];
  const findings: Findings = {
    fault: (path, message) => faults.push({ path, message }),
    unknown(path, known) {
      const hint = suggestion(path, known);
      faults.push({ path, message: `unknown field${hint === undefined ? '' : `, ${hint}`}` });
    },
    ignored: (path) =>
      warnings.push(`${source.name}: ${format(path)} is set, but keelson does not act on it yet`),
  };
  if (document !== null && (typeof document !== 'object' || Array.isArray(document))) {
    faults.push({ path: [], message: 'expected a map of fields' });
  }
  const read = schema.read(document, [], findings);
  // Who sets only how often the status is computed wants it reported as often (kubelet's SetDefaults).
  const onlyUpdate =
    isSet(document, 'nodeStatusUpdateFrequency') && !isSet(document, 'nodeStatusReportFrequency');
  const values = onlyUpdate ? { ...read, nodeStatusReportFrequency: read.nodeStatusUpdateFrequency } : read;
  if (faults.length === 0) checkRules(values, findings);
  if (faults.length === 0) return { values, warnings };
  const lines = faults.slice(0, 20).map(({ path, message }) => {
    const line = source.lineOf(path);
    return `${path.length === 0 ? 'document' : format(path)}${line === undefined ? '' : ` (line ${line})`}: ${message}`;
  });
  if (faults.length > lines.length) lines.push(`and ${faults.length - lines.length} more`);
  throw new KeelsonError('CONFIG_INVALID', `${source.name} is not valid: ${lines.join('; ')}`, {
    details: { fields: faults.map(({ path }) => format(path)) },
  });
}

function isSet(document: unknown, name: 'nodeStatusUpdateFrequency' | 'nodeStatusReportFrequency'): boolean {
  const raw = (document as RawConfig | null)?.[name];
  return raw !== undefined && raw !== null && parseDuration(String(raw)) !== 0;
}

/** `registerWithTaints[0].key`; keys with dots in brackets. */
function format(path: Path): string {
  return path.reduce<string>((text, step) => {
    if (typeof step === 'number') return `${text}[${step}]`;
    const shown = step.length > 80 ? `${step.slice(0, 80)}…` : step;
    if (!/^[\w-]+$/.test(shown)) return `${text}[${JSON.stringify(shown)}]`;
    return text === '' ? shown : `${text}.${shown}`;
  }, '');
}

/** A field of the right name elsewhere is more probable than a mistyped one here. */
function suggestion(path: Path, known: readonly string[]): string | undefined {
  const name = String(path.at(-1));
  const elsewhere = placesOf(name.toLowerCase(), schema.fields ?? {}, []);
  const here = nearest(name, known);
  if (here !== undefined && (here.distance <= 2 || elsewhere.length === 0)) {
    return `did you mean ${format([...path.slice(0, -1), here.name])}?`;
  }
  return elsewhere.length === 0 ? undefined : `did you mean ${format(elsewhere[0]!)}?`;
}

function placesOf(name: string, fields: Fields, above: Path): Path[] {
  return Object.entries(fields).flatMap(([key, field]) => [
    ...(key.toLowerCase() === name ? [[...above, key]] : []),
    ...placesOf(name, field.fields ?? {}, [...above, key]),
  ]);
}

function merge(base: unknown, over: unknown): unknown {
  if (over === undefined) return base;
  const isMap = (value: unknown): value is Record<string, unknown> =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  if (!isMap(over)) return over;
  // What is no map where one should be is left, so that its fault is told.
  if (!isMap(base)) return base ?? over;
  const merged: Record<string, unknown> = { ...base };
  for (const [key, value] of Object.entries(over)) merged[key] = merge(base[key], value);
  return merged;
}

async function read(file: string): Promise<string> {
  try {
    const { size } = await stat(file);
    if (size > maxBytes) {
      throw new KeelsonError('CONFIG_INVALID', `${file} has ${size} bytes: that is not a configuration file`);
    }
    return await readFile(file, 'utf8');
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    throw new KeelsonError('CONFIG_INVALID', `cannot read the configuration file ${file}`, { cause: error });
  }
}

async function parse(
  file: string,
  text: string,
): Promise<{ value: unknown; lineOf(path: Path): number | undefined }> {
  const [{ isMap, isNode, isScalar, LineCounter }, parseYaml] = await Promise.all([
    import('yaml'),
    yamlParser(),
  ]);
  const lines = new LineCounter();
  const bad = (message: string, cause?: unknown) =>
    new KeelsonError('CONFIG_INVALID', `${file} is not valid YAML: ${message}`, { cause });
  try {
    const document = parseYaml(text, lines);
    const [error] = document.errors;
    if (error !== undefined) throw bad(error.message.split('\n', 1)[0]!);
    return {
      value: document.toJS({ maxAliasCount: 100 }) as unknown,
      lineOf(path) {
        const parent: unknown = path.length > 1 ? document.getIn(path.slice(0, -1), true) : document.contents;
        const pair = isMap(parent)
          ? parent.items.find(({ key }) => isScalar(key) && key.value === path.at(-1))
          : undefined;
        const node: unknown = pair?.key ?? document.getIn(path, true);
        const offset = isNode(node) ? node.range?.[0] : undefined;
        return offset === undefined ? undefined : lines.linePos(offset).line;
      },
    };
  } catch (error) {
    if (error instanceof KeelsonError) throw error;
    throw bad(error instanceof Error ? error.message : String(error), error);
  }
}

/** systemd manages cgroups well only on a pure v2 host that it runs. */
async function hostCgroupDriver(root: string): Promise<'cgroupfs' | 'systemd'> {
  const exists = (path: string) =>
    stat(join(root, path)).then(
      () => true,
      (error: unknown) => {
        if (errnoOf(error) === undefined) throw error;
        return false;
      },
    );
  const [systemd, unified] = await Promise.all([
    exists('run/systemd/system'),
    exists('sys/fs/cgroup/cgroup.controllers'),
  ]);
  return systemd && unified ? 'systemd' : 'cgroupfs';
}

function logLevelOf(verbosity: number): LogLevel {
  if (verbosity >= 6) return 'trace';
  return verbosity >= 4 ? 'debug' : 'info';
}
