/** The CDI devices of the node: which there are, and what a container that has some is given. */
import { readdir, readFile, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { KeelsonError } from '../host/errors.ts';
import { type CdiEdits, type CdiSpec, isQualifiedName, parseCdiSpec } from './spec.ts';

/** Later ones win (SPEC.md, "Specification directories"). */
export const defaultCdiFolders: readonly string[] = ['/etc/cdi', '/var/run/cdi'];

export interface CdiRegistry {
  /**
   * What the devices bring, in order; of each specification its own part first, once. Looks at the folders anew.
   * Throws CONTAINER_CONFIG_INVALID that names the devices which are not there, and why.
   */
  resolve(names: readonly string[]): Promise<readonly CdiEdits[]>;
}

const annotationPrefix = 'cdi.k8s.io/';
const maxSpecBytes = 4 << 20;

/** The devices that a container asks for, each once: by its field and by annotations. Pure. Throws CONTAINER_CONFIG_INVALID. */
export function wantedCdiDevices(
  devices: readonly { readonly name: string }[],
  annotations: Readonly<Record<string, string>>,
): readonly string[] {
  const annotated = Object.entries(annotations)
    .filter(([key]) => key.startsWith(annotationPrefix))
    .flatMap(([, value]) => value.split(','));
  const names = [...new Set([...devices.map(({ name }) => name), ...annotated])];
  const broken = names.find((name) => !isQualifiedName(name));
  if (broken === undefined) return names;
  throw new KeelsonError('CONTAINER_CONFIG_INVALID', `${JSON.stringify(broken)} is no name of a CDI device`, {
    hint: 'such names are vendor/class=name',
  });
}

interface Read {
  readonly path: string;
  readonly spec?: CdiSpec;
  readonly error?: string;
}

export function makeCdiRegistry(folders: readonly string[] = defaultCdiFolders): CdiRegistry {
  /** By path; they can be long, and change rarely. */
  const cache = new Map<string, { readonly stamp: string; readonly read: Read }>();

  const readSpec = async (path: string): Promise<Read> => {
    try {
      const info = await stat(path);
      if (!info.isFile()) return { path, error: `${path} is not a file` };
      if (info.size > maxSpecBytes) return { path, error: `${path} is bigger than ${maxSpecBytes} bytes` };
      const stamp = [info.ino, info.size, info.mtimeMs, info.ctimeMs].join(' ');
      const known = cache.get(path);
      if (known?.stamp === stamp) return known.read;
      const text = await readFile(path, 'utf8');
      let read: Read;
      try {
        read = { path, spec: parseCdiSpec(text, path) };
      } catch (error) {
        if (!(error instanceof KeelsonError)) throw error;
        read = { path, error: error.message };
      }
      cache.set(path, { stamp, read });
      return read;
    } catch (error) {
      return { path, error: `${path}: ${error instanceof Error ? error.message : String(error)}` };
    }
  };

  const readFolder = async (folder: string): Promise<Read[]> => {
    const names = await readdir(folder).catch((): string[] => []);
    const specs = names.filter((name) => /\.(json|yaml|yml)$/.test(name)).sort();
    return Promise.all(specs.map((name) => readSpec(join(folder, name))));
  };

  return {
    async resolve(names) {
      if (names.length === 0) return [];
      const reads = await Promise.all(folders.map(readFolder));
      const paths = new Set(reads.flat().map(({ path }) => path));
      for (const path of cache.keys()) if (!paths.has(path)) cache.delete(path);
      const found = names.map((name) => findDevice(reads, name));
      const missing = names.filter((_, index) => found[index]?.edits === undefined);
      if (missing.length > 0) {
        const reasons = found.flatMap(({ why }) => (why === undefined ? [] : [why]));
        const broken = reads.flat().flatMap(({ error }) => (error === undefined ? [] : [error]));
        throw new KeelsonError(
          'CONTAINER_CONFIG_INVALID',
          [
            'unresolvable CDI devices ',
            missing.join(', '),
            ...[...reasons, ...broken].map((why) => `; ${why}`),
          ].join(''),
          { hint: `CDI specifications are read from ${folders.join(' and ')}` },
        );
      }
      const seen = new Set<CdiSpec>();
      return found.flatMap(({ spec, edits }) => {
        if (spec === undefined || edits === undefined) return [];
        const own = seen.has(spec) ? [] : [spec.edits];
        seen.add(spec);
        return [...own, edits];
      });
    },
  };
}

/** In the last folder that has it; two files of one folder must not both have it. */
function findDevice(
  folders: readonly (readonly Read[])[],
  name: string,
): { readonly spec?: CdiSpec; readonly edits?: CdiEdits; readonly why?: string } {
  const [kind = '', device = ''] = name.split('=', 2);
  for (const reads of [...folders].reverse()) {
    const having = reads.filter(({ spec }) => spec?.kind === kind && spec.devices.has(device));
    if (having.length > 1) {
      return { why: `${name} is in ${having.map(({ path }) => path).join(' and in ')}` };
    }
    const spec = having[0]?.spec;
    if (spec !== undefined) return { spec, edits: spec.devices.get(device) };
  }
  return {};
}
