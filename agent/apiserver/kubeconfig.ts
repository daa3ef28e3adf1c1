/** Reads a kubeconfig (client-go, clientcmd/api/v1) into what the client needs of it. */
import { readFile } from 'node:fs/promises';
import { dirname, resolve } from 'node:path';
import { type Clock, systemClock } from '../../runtime/host/clock.ts';
import { describe, errnoOf, KeelsonError } from '../../runtime/host/errors.ts';
import {
  type AccessOptions,
  type ClusterAccess,
  type ExecPlugin,
  makeAccess,
  type Source,
} from './credentials.ts';

export type { ClusterAccess, Credentials } from './credentials.ts';

/** Larger files are no kubeconfigs. */
const maxBytes = 1 << 20;
const execVersions = ['client.authentication.k8s.io/v1', 'client.authentication.k8s.io/v1beta1'];

type Fields = Readonly<Record<string, unknown>>;

/**
 * Reads the file and everything that it names, and follows changes of these files afterwards.
 * `context`: the name of one; default: the file's current-context, or the only one.
 * Throws CONFIG_INVALID, which names the file and the field.
 */
export async function loadKubeconfig(
  path: string,
  context?: string,
  options: { readonly clock?: Clock } = {},
): Promise<ClusterAccess> {
  const { parse } = await import('yaml');
  let document: unknown;
  let text: string;
  try {
    text = await readFile(path, 'utf8');
  } catch (error) {
    const missing = errnoOf(error) === 'ENOENT';
    throw new KeelsonError(
      'CONFIG_INVALID',
      missing ? `there is no kubeconfig ${path}` : `cannot read the kubeconfig ${path}: ${describe(error)}`,
      { cause: error },
    );
  }
  if (text.length > maxBytes) {
    throw new KeelsonError('CONFIG_INVALID', `kubeconfig ${path} is larger than ${maxBytes} bytes`);
  }
  try {
    document = parse(text, { logLevel: 'error' });
  } catch (error) {
    // The parser quotes the line, which may be a secret: only the place is told.
    const place = (error as { linePos?: readonly { line: number }[] }).linePos?.[0]?.line;
    throw new KeelsonError(
      'CONFIG_INVALID',
      `kubeconfig ${path} is not YAML${place === undefined ? '' : ` (line ${place})`}`,
    );
  }
  return makeAccess({ ...readKubeconfig(document, path, context), clock: options.clock ?? systemClock });
}

/** Access to a server that wants no credentials, such as a development apiserver on the loopback address. */
export function plainAccess(server: string): ClusterAccess {
  const credentials = { tls: {} };
  return { server: new URL(server), credentials: async () => credentials, refused: () => {} };
}

/** The chosen cluster and user of a parsed kubeconfig. Pure. Throws CONFIG_INVALID. */
export function readKubeconfig(
  document: unknown,
  path: string,
  context?: string,
): Omit<AccessOptions, 'clock'> {
  const fail = (field: string, what: string, hint?: string): never => {
    throw new KeelsonError('CONFIG_INVALID', `kubeconfig ${path}: ${field}: ${what}`, { hint });
  };
  const map = (value: unknown, field: string): Fields => {
    if (value === undefined || value === null) return {};
    if (typeof value !== 'object' || Array.isArray(value)) return fail(field, 'must be a map');
    return value as Fields;
  };
  const text = (fields: Fields, name: string, field: string): string | undefined => {
    const value = fields[name];
    if (value === undefined || value === null || value === '') return undefined;
    return typeof value === 'string' ? value : fail(`${field}.${name}`, 'must be a string');
  };
  const list = (value: unknown, field: string): readonly unknown[] => {
    if (value === undefined || value === null) return [];
    return Array.isArray(value) ? value : fail(field, 'must be a list');
  };
  const named = (heap: string, what: string, name: string): { fields: Fields; field: string } => {
    const entries = list(root[heap], heap).map((entry, index) => map(entry, `${heap}[${index}]`));
    const index = entries.findIndex((entry) => entry['name'] === name);
    if (index === -1) fail(heap, `there is no ${what} named ${JSON.stringify(name)}`);
    const field = `${heap}[${index}].${what}`;
    return { fields: map(entries[index]![what], field), field };
  };
  const source = (fields: Fields, field: string, dataName: string, fileName: string, base64: boolean) => {
    const data = text(fields, dataName, field);
    const file = text(fields, fileName, field);
    const at = (name: string) => `kubeconfig ${path}: ${field}.${name}`;
    if (data !== undefined) {
      if (base64 && !/^[A-Za-z0-9+/\s]+={0,2}\s*$/.test(data)) fail(`${field}.${dataName}`, 'is not base64');
      const value = base64 ? Buffer.from(data, 'base64').toString('utf8') : data.trim();
      return { field: at(dataName), data: value } satisfies Source;
    }
    if (file === undefined) return undefined;
    return { field: at(fileName), file: resolve(dirname(path), file) } satisfies Source;
  };

  const root = map(document, 'document');
  if (root['kind'] !== undefined && root['kind'] !== 'Config') fail('kind', 'must be Config');
  const chosen = context ?? text(root, 'current-context', 'document') ?? onlyContext(root);
  if (chosen === undefined) return fail('current-context', 'is not set', 'set it, or name a context');
  const { fields: use, field: useField } = named('contexts', 'context', chosen);
  const clusterName = text(use, 'cluster', useField) ?? fail(`${useField}.cluster`, 'is not set');
  const { fields: cluster, field: clusterField } = named('clusters', 'cluster', clusterName);
  const userName = text(use, 'user', useField);
  const { fields: user, field: userField } =
    userName === undefined ? { fields: {}, field: 'user' } : named('users', 'user', userName);

  const server = readServer(text(cluster, 'server', clusterField), (what) =>
    fail(`${clusterField}.server`, what),
  );
  for (const name of ['proxy-url']) {
    if (text(cluster, name, clusterField) !== undefined) fail(`${clusterField}.${name}`, 'is not supported');
  }
  for (const name of ['auth-provider', 'as', 'as-uid', 'as-groups', 'as-user-extra']) {
    const value = user[name];
    if (value !== undefined && value !== null && value !== '')
      fail(`${userField}.${name}`, 'is not supported');
  }
  const cert = source(user, userField, 'client-certificate-data', 'client-certificate', true);
  const key = source(user, userField, 'client-key-data', 'client-key', true);
  if ((cert === undefined) !== (key === undefined)) {
    fail(userField, 'client-certificate and client-key must be given together');
  }
  const insecure = cluster['insecure-skip-tls-verify'] ?? false;
  if (typeof insecure !== 'boolean')
    fail(`${clusterField}.insecure-skip-tls-verify`, 'must be true or false');
  const username = text(user, 'username', userField);
  return {
    server,
    serverName: text(cluster, 'tls-server-name', clusterField),
    insecure: insecure === true,
    ca: source(cluster, clusterField, 'certificate-authority-data', 'certificate-authority', true),
    cert,
    key,
    // client-go: tokenFile goes before token.
    token:
      text(user, 'tokenFile', userField) === undefined
        ? source(user, userField, 'token', 'tokenFile', false)
        : source({ tokenFile: user['tokenFile'] }, userField, 'token', 'tokenFile', false),
    basic:
      username === undefined ? undefined : { username, password: text(user, 'password', userField) ?? '' },
    exec: user['exec'] === undefined || user['exec'] === null ? undefined : readExec(),
  };

  function readExec(): ExecPlugin {
    const field = `${userField}.exec`;
    const fields = map(user['exec'], field);
    const apiVersion = text(fields, 'apiVersion', field) ?? fail(`${field}.apiVersion`, 'is not set');
    if (!execVersions.includes(apiVersion)) {
      fail(`${field}.apiVersion`, `must be one of ${execVersions.join(', ')}`);
    }
    const command = text(fields, 'command', field) ?? fail(`${field}.command`, 'is not set');
    if (text(fields, 'interactiveMode', field) === 'Always') {
      fail(`${field}.interactiveMode`, 'a node agent has no terminal for a plugin that needs one');
    }
    const args = list(fields['args'], `${field}.args`).map((value, index) =>
      typeof value === 'string' ? value : fail(`${field}.args[${index}]`, 'must be a string'),
    );
    const env: Record<string, string> = {};
    for (const [index, value] of list(fields['env'], `${field}.env`).entries()) {
      const at = `${field}.env[${index}]`;
      const pair = map(value, at);
      env[text(pair, 'name', at) ?? fail(`${at}.name`, 'is not set')] = text(pair, 'value', at) ?? '';
    }
    return {
      field: `kubeconfig ${path}: ${field}`,
      apiVersion,
      command: command.includes('/') ? resolve(dirname(path), command) : command,
      args,
      env,
      installHint: text(fields, 'installHint', field),
      cluster:
        fields['provideClusterInfo'] === true
          ? {
              server: server.href,
              'tls-server-name': text(cluster, 'tls-server-name', clusterField),
              'insecure-skip-tls-verify': insecure === true ? true : undefined,
              'certificate-authority-data': text(cluster, 'certificate-authority-data', clusterField),
            }
          : undefined,
    };
  }
}

function onlyContext(root: Fields): string | undefined {
  const contexts = root['contexts'];
  if (!Array.isArray(contexts) || contexts.length !== 1) return undefined;
  const name = (contexts[0] as Fields | null)?.['name'];
  return typeof name === 'string' ? name : undefined;
}

function readServer(value: string | undefined, fail: (what: string) => never): URL {
  if (value === undefined) return fail('is not set');
  const url = URL.parse(value.includes('://') ? value : `https://${value}`);
  if (url === null || (url.protocol !== 'https:' && url.protocol !== 'http:')) {
    return fail('must be an https:// or http:// address');
  }
  if (url.username !== '' || url.password !== '') return fail('must not carry credentials');
  return url;
}
