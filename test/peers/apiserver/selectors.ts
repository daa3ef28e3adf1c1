/** labelSelector and fieldSelector of list and watch requests. */
import type { Resource, StoredObject } from './resources.ts';
import { badRequest } from './status.ts';

export type Matcher = (object: StoredObject) => boolean;

/** The conjunction of both selectors. Throws 400 for what a real apiserver does not understand either. */
export function selector(resource: Resource, query: URLSearchParams): Matcher {
  const tests = [
    ...labelTests(query.get('labelSelector') ?? ''),
    ...fieldTests(resource, query.get('fieldSelector') ?? ''),
  ];
  return (object) => tests.every((test) => test(object));
}

function labelTests(text: string): Matcher[] {
  // Commas inside `in (a,b)` do not separate.
  const parts = text.match(/(?:[^,(]|\([^)]*\))+/g) ?? [];
  return parts.map((part) => {
    const match =
      /^\s*(?:(!)\s*(\S+)|(\S+?)\s*(==|=|!=)\s*(\S*)|(\S+)\s+(in|notin)\s+\(([^)]*)\)|(\S+))\s*$/.exec(part);
    if (match === null) throw badRequest(`unable to parse requirement: ${part}`);
    const [, not, absent, key, operator, value, setKey, setOperator, set, present] = match;
    const label = (object: StoredObject, name: string) => object.metadata.labels?.[name];
    if (not !== undefined) return (object) => label(object, absent!) === undefined;
    if (present !== undefined) return (object) => label(object, present) !== undefined;
    if (setKey !== undefined) {
      const values = set!.split(',').map((item) => item.trim());
      return (object) => {
        const found = label(object, setKey);
        const among = found !== undefined && values.includes(found);
        return setOperator === 'in' ? among : !among;
      };
    }
    return (object) => (label(object, key!) === value) === (operator !== '!=');
  });
}

function fieldTests(resource: Resource, text: string): Matcher[] {
  return text
    .split(',')
    .filter((part) => part !== '')
    .map((part) => {
      const match = /^([^=!]+)(==|=|!=)(.*)$/.exec(part);
      if (match === null) throw badRequest(`invalid selector: '${part}'; can't understand '${part}'`);
      const [, field, operator, value] = match;
      const known = [
        'metadata.name',
        ...(resource.namespaced ? ['metadata.namespace'] : []),
        ...resource.selectable,
      ];
      if (!known.includes(field!)) throw badRequest(`field label not supported: ${field}`);
      return (object) => (fieldOf(object, field!) === value) === (operator !== '!=');
    });
}

/** The value at `a.b.c` as text; empty where it is absent, as field sets have it. */
function fieldOf(object: StoredObject, field: string): string {
  let value: unknown = object;
  for (const key of field.split('.')) value = (value as Record<string, unknown> | undefined)?.[key];
  return value === undefined || value === null
    ? field === 'spec.unschedulable'
      ? 'false'
      : ''
    : String(value);
}
