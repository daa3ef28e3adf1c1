/** Published .proto files out of Go's module cache, in the form of our tables. */
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import protobuf from 'protobufjs';

/** The path of `file` of a module such as `k8s.io/kubelet@v0.37.2`; undefined where the cache does not have it. */
export function publishedFile(module: string, file: string): string | undefined {
  const cache = process.env['GOMODCACHE'] ?? join(process.env['GOPATH'] ?? join(homedir(), 'go'), 'pkg/mod');
  const path = join(cache, module, file);
  return existsSync(path) ? path : undefined;
}

const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

export interface Published {
  readonly root: protobuf.Namespace;
  /** Messages and enums by their names below the package: `VolumeCapability.AccessMode`. */
  readonly messages: Readonly<Record<string, Readonly<Record<string, readonly [number, string]>>>>;
  readonly enums: Readonly<Record<string, readonly string[]>>;
  readonly services: Readonly<Record<string, Readonly<Record<string, readonly string[]>>>>;
}

/**
 * The file's definitions. Types of fields are full names below the package, as those of messages are. What is of other
 * packages keeps its full name.
 */
export function readProto(path: string, name: string): Published {
  const { root } = protobuf.parse(readFileSync(path, 'utf8'), { keepCase: true });
  // What other files define is only looked at by extensions and well-known types, which our tables leave out.
  const found = {
    root: root.lookup(name) as protobuf.Namespace,
    messages: {} as Record<string, Record<string, readonly [number, string]>>,
    enums: {} as Record<string, readonly string[]>,
    services: {} as Record<string, Record<string, readonly string[]>>,
  };
  const short = (object: protobuf.ReflectionObject) => object.fullName.replace(`.${name}.`, '');
  const typeOf = (field: protobuf.Field): string => {
    try {
      field.resolve();
    } catch {
      return field.type;
    }
    return field.resolvedType === null ? field.type : short(field.resolvedType);
  };
  const visit = (object: protobuf.ReflectionObject): void => {
    if (object instanceof protobuf.Type) {
      found.messages[short(object)] = Object.fromEntries(
        object.fieldsArray.map((field) => {
          const type = typeOf(field);
          const shown = field instanceof protobuf.MapField ? 'map' : `${type}${field.repeated ? '[]' : ''}`;
          return [camel(field.name), [field.id, shown]] as const;
        }),
      );
      object.nestedArray.forEach(visit);
    } else if (object instanceof protobuf.Enum) {
      const entries = Object.entries(object.values).sort(([, a], [, b]) => a - b);
      const names: string[] = [];
      for (const [value, number] of entries) names[number] = value;
      found.enums[short(object)] = Array.from(names, (value, number) => value ?? `RESERVED_${number}`);
    } else if (object instanceof protobuf.Service) {
      found.services[object.name] = Object.fromEntries(
        object.methodsArray.map(({ name: method, requestType, responseType }) => [
          method,
          [requestType, responseType] as const,
        ]),
      );
    }
  };
  found.root.nestedArray.forEach(visit);
  return found;
}
