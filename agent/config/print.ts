/** The configuration as others read it: KubeletConfiguration (kubelet.config.k8s.io/v1beta1) with its defaults. Pure. */
import { printDuration } from './duration.ts';
import type { Field, Fields } from './field.ts';
import type { AgentConfig } from './load.ts';
import { schema } from './schema.ts';

/** Headers may hold credentials: kubelet hides them, too. */
const hidden = '<masked>';

/** Without keelson's own section, which nobody but the command line asks for. */
export function printConfig(config: AgentConfig): Record<string, unknown> {
  const { keelson: _, ...fields } = schema.fields ?? {};
  return {
    kind: 'KubeletConfiguration',
    apiVersion: 'kubelet.config.k8s.io/v1beta1',
    ...printed(config, fields),
  };
}

function printed(values: object, fields: Fields): Record<string, unknown> {
  const shown: Record<string, unknown> = {};
  for (const [name, field] of Object.entries(fields)) {
    const value = (values as Readonly<Record<string, unknown>>)[name];
    if (value === undefined || value === null || name === 'kind' || name === 'apiVersion') continue;
    shown[name] = name === 'staticPodURLHeader' ? masked(value) : print(value, field);
  }
  return shown;
}

function print(value: unknown, field: Field<unknown>): unknown {
  if (typeof value === 'number') return field.expects.startsWith('duration') ? printDuration(value) : value;
  const { fields } = field;
  if (fields === undefined || typeof value !== 'object' || value === null) return value;
  return Array.isArray(value) ? value.map((item) => printed(item, fields)) : printed(value, fields);
}

function masked(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return hidden;
  return Object.fromEntries(Object.keys(value).map((name) => [name, [hidden]]));
}
