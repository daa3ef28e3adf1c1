/**
 * The configuration of credential providers: kubelet's CredentialProviderConfig (kubelet.config.k8s.io/v1, v1beta1,
 * v1alpha1), one file or a folder of them, with the programs in one folder.
 */
import { constants } from 'node:fs';
import { access, readdir, readFile, stat } from 'node:fs/promises';
import { extname, join } from 'node:path';
import { describe, KeelsonError } from '../../../runtime/host/errors.ts';
import { boolean, duration, type Field, type Findings, list, object, string } from '../../config/field.ts';
import { yamlParser } from '../../config/yaml.ts';
import { parseAddress } from './address.ts';

export const requestVersions = [
  'credentialprovider.kubelet.k8s.io/v1',
  'credentialprovider.kubelet.k8s.io/v1beta1',
  'credentialprovider.kubelet.k8s.io/v1alpha1',
] as const;

export interface TokenAttributes {
  readonly audience: string;
  /** Whether credentials are kept for each token, or for all pods of a service account. */
  readonly cacheType: 'ServiceAccount' | 'Token';
  /** Pods without a service account do not get to the provider. */
  readonly requireServiceAccount: boolean;
  /** A service account without one of these does not get to the provider. */
  readonly requiredAnnotations: readonly string[];
  readonly optionalAnnotations: readonly string[];
}

export interface ProviderConfig {
  readonly name: string;
  /** Absolute path of the program. */
  readonly program: string;
  /** Of the request and of the answer. */
  readonly apiVersion: string;
  readonly matchImages: readonly string[];
  /** Milliseconds, for answers that say nothing of it; 0: such answers are not kept. */
  readonly defaultCacheMs: number;
  readonly args: readonly string[];
  /** Over keelson's own environment. */
  readonly env: readonly { readonly name: string; readonly value: string }[];
  readonly token: TokenAttributes | undefined;
}

const present = { keepZero: true };
/** Unlike the fields of a KubeletConfiguration, an empty text in a list is a value here. */
const texts: Field<readonly string[], readonly string[]> = {
  expects: 'list of strings',
  acted: true,
  read(raw, path, findings) {
    if (raw === undefined || raw === null) return [];
    if (Array.isArray(raw) && raw.every((item) => typeof item === 'string')) return raw as string[];
    findings.fault(path, 'expected a list of strings');
    return [];
  },
};
const tokenFields = {
  serviceAccountTokenAudience: string(),
  cacheType: string({ oneOf: ['ServiceAccount', 'Token'] }),
  requireServiceAccount: boolean(),
  requiredServiceAccountAnnotationKeys: texts,
  optionalServiceAccountAnnotationKeys: texts,
};
const baseFields = {
  name: string(),
  matchImages: texts,
  defaultCacheDuration: duration(present),
  apiVersion: string({ oneOf: requestVersions }),
  args: texts,
  env: list(
    object({ name: string({ default: '', ...present }), value: string({ default: '', ...present }) }),
  ),
};
const documentOf = <F extends typeof baseFields>(provider: F) =>
  object({ apiVersion: string(), kind: string(), providers: list(object(provider)) });
const newest = documentOf({
  ...baseFields,
  // Absent and empty differ, which `object` does not tell: looked at before it is read.
  tokenAttributes: object(tokenFields),
});
const older = documentOf(baseFields);

/** Reads one document; `fault` is told what is wrong with it. The programs are not looked at. */
export function readProviderConfig(
  document: unknown,
  binDir: string,
  fault: (path: string, message: string) => void,
): ProviderConfig[] {
  const findings: Findings = {
    fault: (path, message) => fault(path.join('.'), message),
    unknown: (path) => fault(path.join('.'), 'unknown field'),
    ignored: () => {},
  };
  const version = (document as { apiVersion?: unknown } | null)?.apiVersion;
  const read =
    version === 'kubelet.config.k8s.io/v1'
      ? newest.read(document, [], findings)
      : older.read(document, [], findings);
  if (!['v1', 'v1beta1', 'v1alpha1'].some((known) => read.apiVersion === `kubelet.config.k8s.io/${known}`))
    fault('apiVersion', 'expected kubelet.config.k8s.io/v1');
  if (read.kind !== 'CredentialProviderConfig') fault('kind', 'expected CredentialProviderConfig');
  if (read.providers.length === 0) fault('providers', 'at least one is needed');
  return read.providers.map((provider, index) => {
    const at = (name: string, message: string) => fault(`providers.${index}.${name}`, message);
    const { name = '', apiVersion = '', matchImages, defaultCacheDuration, args, env } = provider;
    if (name === '' || name === '.' || name === '..' || /[/ ]/.test(name))
      at('name', 'must be the name of a program: without blanks and slashes');
    if (apiVersion === '') at('apiVersion', `must be one of ${requestVersions.join(', ')}`);
    if (matchImages.length === 0) at('matchImages', 'at least one is needed');
    for (const pattern of matchImages)
      if (parseAddress(pattern) === undefined)
        at('matchImages', `${JSON.stringify(pattern)} is not a host with a port or a path`);
    if (defaultCacheDuration === undefined) at('defaultCacheDuration', 'is missing');
    const raw = (document as { providers?: readonly { tokenAttributes?: unknown }[] }).providers?.[index];
    const given = 'tokenAttributes' in provider && raw?.tokenAttributes != null;
    return {
      name,
      program: join(binDir, name),
      apiVersion,
      matchImages,
      defaultCacheMs: defaultCacheDuration ?? 0,
      args,
      env,
      token: given ? readToken(provider.tokenAttributes as TokenFields, apiVersion, at) : undefined,
    };
  });
}

type TokenFields = ReturnType<ReturnType<typeof object<typeof tokenFields>>['read']>;

function readToken(
  fields: TokenFields,
  apiVersion: string,
  at: (name: string, message: string) => void,
): TokenAttributes {
  const fault = (name: string, message: string) => at(`tokenAttributes.${name}`, message);
  const audience = fields.serviceAccountTokenAudience ?? '';
  const required = fields.requiredServiceAccountAnnotationKeys;
  const optional = fields.optionalServiceAccountAnnotationKeys;
  if (audience === '') fault('serviceAccountTokenAudience', 'is missing');
  if (fields.cacheType === undefined) fault('cacheType', 'must be ServiceAccount or Token');
  if (fields.requireServiceAccount === undefined) fault('requireServiceAccount', 'is missing');
  if (apiVersion !== '' && apiVersion !== requestVersions[0])
    at('tokenAttributes', `needs apiVersion ${requestVersions[0]}`);
  if (fields.requireServiceAccount === false && required.length > 0)
    fault('requiredServiceAccountAnnotationKeys', 'needs requireServiceAccount: true');
  for (const [name, keys] of [
    ['requiredServiceAccountAnnotationKeys', required],
    ['optionalServiceAccountAnnotationKeys', optional],
  ] as const) {
    for (const key of keys) if (!isAnnotationKey(key)) fault(name, `${JSON.stringify(key)} is not a key`);
    if (new Set(keys).size < keys.length) fault(name, 'has a key twice');
  }
  if (required.some((key) => optional.includes(key)))
    at('tokenAttributes', 'an annotation cannot be both required and optional');
  return {
    audience,
    cacheType: fields.cacheType === 'Token' ? 'Token' : 'ServiceAccount',
    requireServiceAccount: fields.requireServiceAccount ?? true,
    requiredAnnotations: required,
    optionalAnnotations: optional,
  };
}

/** A qualified name of Kubernetes, in any case. */
function isAnnotationKey(key: string): boolean {
  const match = /^(?:([^/]*)\/)?([^/]*)$/.exec(key.toLowerCase());
  if (match === null) return false;
  const [, domain, name = ''] = match;
  const label = '[a-z0-9]([-a-z0-9]*[a-z0-9])?';
  return (
    name.length <= 63 &&
    /^[a-z0-9]([-a-z0-9_.]*[a-z0-9])?$/.test(name) &&
    (domain === undefined || (domain.length <= 253 && new RegExp(`^${label}(\\.${label})*$`).test(domain)))
  );
}

/**
 * The providers of `path` (a file, or a folder whose *.json, *.yaml and *.yml are taken in the order of their names),
 * in order. Throws CONFIG_INVALID that tells every fault, also for a program that is missing in `binDir`.
 */
export async function loadProviderConfig(path: string, binDir: string): Promise<ProviderConfig[]> {
  const faults: string[] = [];
  const providers: ProviderConfig[] = [];
  for (const file of await filesOf(path)) {
    const document = await parse(file);
    providers.push(
      ...readProviderConfig(document, binDir, (where, message) =>
        faults.push(`${file}: ${where === '' ? '' : `${where}: `}${message}`),
      ),
    );
  }
  const names = providers.map(({ name }) => name);
  for (const name of new Set(names.filter((one, index) => names.indexOf(one) !== index)))
    faults.push(`two providers are named ${name}`);
  if (faults.length === 0) {
    for (const { program } of providers) {
      const found = await stat(program).catch(() => undefined);
      if (found === undefined) faults.push(`there is no program ${program}`);
      else if (!found.isFile() || !(await mayRun(program))) faults.push(`${program} is not a program`);
    }
  }
  if (faults.length === 0) return providers;
  throw new KeelsonError('CONFIG_INVALID', `credential providers: ${faults.slice(0, 20).join('; ')}`, {
    hint: 'see imageCredentialProviderConfig and imageCredentialProviderBinDir',
  });
}

async function mayRun(program: string): Promise<boolean> {
  return access(program, constants.X_OK).then(
    () => true,
    () => false,
  );
}

async function filesOf(path: string): Promise<string[]> {
  try {
    if (!(await stat(path)).isDirectory()) return [path];
    const entries = await readdir(path, { withFileTypes: true });
    const files = entries
      .filter((entry) => !entry.isDirectory() && ['.json', '.yaml', '.yml'].includes(extname(entry.name)))
      .map(({ name }) => join(path, name))
      .sort();
    if (files.length > 0) return files;
  } catch (error) {
    throw new KeelsonError('CONFIG_INVALID', `cannot read ${path}`, { cause: error });
  }
  throw new KeelsonError('CONFIG_INVALID', `${path} has no file *.json, *.yaml or *.yml`);
}

async function parse(file: string): Promise<unknown> {
  const parseYaml = await yamlParser();
  try {
    const document = parseYaml(await readFile(file, 'utf8'));
    const [error] = document.errors;
    if (error !== undefined) throw new Error(error.message.split('\n', 1)[0]);
    return document.toJS({ maxAliasCount: 100 }) as unknown;
  } catch (error) {
    throw new KeelsonError('CONFIG_INVALID', `cannot read ${file}: ${describe(error)}`, { cause: error });
  }
}
