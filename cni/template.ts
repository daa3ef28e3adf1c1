/**
 * A network configuration made from a template with the node's pod CIDR, as containerd's `conf_template`: for nodes
 * where nothing else drops one. The template is what of Go's text/template such files use.
 */
import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { errnoOf, KeelsonError } from '../runtime/host/errors.ts';
import { ensureFolder, writeFileAtomic } from '../runtime/host/files.ts';
import type { Logger } from '../runtime/host/log.ts';
import { parseNetwork } from './config.ts';
import { load } from './folder.ts';

/** The values that containerd gives its template. */
export interface TemplateValues {
  readonly PodCIDR: string;
  readonly PodCIDRRanges: readonly string[];
  /** The default routes of the families among them. */
  readonly Routes: readonly string[];
}

/** `10.1.0.0/24` or `10.1.0.0/24,fd00::/64`. Pure. Throws INVALID_ARGUMENT. */
export function valuesOf(podCidrs: string): TemplateValues {
  const cidrs = podCidrs.split(',').map((cidr) => cidr.trim());
  const families = cidrs.map((cidr) => {
    const [, address = '', bits = ''] = /^([^/]+)\/(\d{1,3})$/.exec(cidr) ?? [];
    const family = isIP(address);
    if (family !== 0 && Number(bits) <= (family === 4 ? 32 : 128)) return family;
    throw new KeelsonError('INVALID_ARGUMENT', `pod CIDR ${JSON.stringify(cidr)} is no range of addresses`);
  });
  return {
    PodCIDR: cidrs[0]!,
    PodCIDRRanges: cidrs,
    Routes: [...(families.includes(4) ? ['0.0.0.0/0'] : []), ...(families.includes(6) ? ['::/0'] : [])],
  };
}

type Scope = Readonly<Record<string, unknown>>;
type Part = (scope: Scope) => string;

/**
 * Text with `{{.Name}}`, `{{$name}}`, `{{range .List}}`, `{{range $index, $item := .List}}`, `{{if $value}}`, `{{else}}`
 * and `{{end}}`, whose `{{-` and `-}}` eat the blanks beside them. Pure. Throws CNI_CONFIG_INVALID for anything else.
 */
export function renderTemplate(text: string, values: TemplateValues): string {
  const tokens = text.split(/(\s*\{\{-\s[\s\S]*?\}\}|\{\{[\s\S]*?\}\})/);
  let eat = false;
  let at = 0;
  const wrong = (action: string) =>
    new KeelsonError('CNI_CONFIG_INVALID', `the template holds {{${action}}}, which is not understood here`);

  const read = (name: string): Part | undefined => {
    if (name !== '.' && !/^[.$]\w+$/.test(name)) return undefined;
    return (scope) => {
      if (!(name in scope)) throw wrong(name);
      return scope[name] as string;
    };
  };

  const parts = (closers: readonly string[]): [Part, string] => {
    const list: Part[] = [];
    while (at < tokens.length) {
      const token = tokens[at++]!;
      const [, action] = /^\s*\{\{(?:-\s)?\s*([\s\S]*?)\s*(?:\s-)?\}\}$/.exec(token) ?? [];
      if (action === undefined) {
        const plain = eat ? token.trimStart() : token;
        if (plain !== '') eat = false;
        list.push(() => plain);
        continue;
      }
      eat = token.endsWith('-}}');
      if (closers.includes(action)) return [(scope) => list.map((part) => part(scope)).join(''), action];
      list.push(block(action));
    }
    if (closers.length > 0) throw wrong(`${closers.join('}} or {{')}}} missing: {{`);
    return [(scope) => list.map((part) => part(scope)).join(''), ''];
  };

  const block = (action: string): Part => {
    const [, index, item, list] = /^range\s+(?:(?:(\$\w+)\s*,\s*)?(\$\w+)\s*:=\s*)?(\S+)$/.exec(action) ?? [];
    if (list !== undefined) {
      const of = read(list);
      if (of === undefined) throw wrong(action);
      const [body] = parts(['end']);
      return (scope) => {
        const items: unknown = of(scope);
        if (!Array.isArray(items)) throw wrong(action);
        return items
          .map((one, position) =>
            body({
              ...scope,
              '.': one,
              ...(item === undefined ? {} : { [item]: one }),
              ...(index === undefined ? {} : { [index]: position }),
            }),
          )
          .join('');
      };
    }
    const [, condition] = /^if\s+(\S+)$/.exec(action) ?? [];
    if (condition !== undefined) {
      const of = read(condition);
      if (of === undefined) throw wrong(action);
      const [yes, closer] = parts(['else', 'end']);
      const no = closer === 'else' ? parts(['end'])[0] : () => '';
      return (scope) => {
        const value: unknown = of(scope);
        return (Array.isArray(value) ? value.length > 0 : value) ? yes(scope) : no(scope);
      };
    }
    const value = read(action);
    if (value === undefined) throw wrong(action);
    return (scope) => {
      const found: unknown = value(scope);
      return Array.isArray(found) ? `[${found.join(' ')}]` : String(found);
    };
  };

  const dotted = Object.entries(values).map(([name, value]) => [`.${name}`, value]);
  return parts([])[0](Object.fromEntries(dotted));
}

const templateFile = '10-keelson-net.conflist';

/**
 * What to do with the node's pod CIDRs, as the kubelet tells them by UpdateRuntimeConfig: writes the network configuration
 * of `template`, unless there is a network already. Empty ones, and no template: nothing. Throws INVALID_ARGUMENT,
 * CNI_CONFIG_INVALID.
 */
export function makePodCidrs(options: {
  readonly template: string | undefined;
  /** The file goes into the first one. */
  readonly confDirs: readonly string[];
  readonly log: Logger;
}): (podCidrs: string) => Promise<void> {
  const { template, confDirs, log } = options;
  const confDir = confDirs[0];
  return async (podCidrs) => {
    if (podCidrs === '') return;
    const values = valuesOf(podCidrs);
    if (template === undefined || confDir === undefined) return;
    if ((await load(confDirs)).network !== undefined) return;
    const text = await readFile(template, 'utf8').catch((error: unknown) => {
      throw new KeelsonError(
        'CNI_CONFIG_INVALID',
        `the template ${template} cannot be read: ${errnoOf(error)}`,
        { hint: 'see keelson.cniConfTemplate' },
      );
    });
    const made = renderTemplate(text, values);
    const file = join(confDir, templateFile);
    parseNetwork(made, file);
    await ensureFolder(confDir);
    await writeFileAtomic(file, made, { mode: 0o644 });
    log.info({ file, template, podCidrs }, 'the network configuration was made from its template');
  };
}
