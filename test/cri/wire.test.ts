/** The messages of the CRI: our tables against the published api.proto, our codec against protobufjs, and bad bytes. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import protobuf from 'protobufjs';
import { decode } from '../../runtime/cri/wire/decode.ts';
import { encode } from '../../runtime/cri/wire/encode.ts';
import { enums } from '../../runtime/cri/wire/enums.ts';
import { services } from '../../runtime/cri/wire/services.ts';
import { type MessageName, messages, type WireInput } from '../../runtime/cri/wire/types.ts';

/** The version that the tables were written from. */
const version = 'v0.37.2';

/** The published file: in Go's module cache. */
function publishedProto(): string | undefined {
  const cache = process.env['GOMODCACHE'] ?? join(process.env['GOPATH'] ?? join(homedir(), 'go'), 'pkg/mod');
  const path = join(cache, `k8s.io/cri-api@${version}/pkg/apis/runtime/v1/api.proto`);
  return existsSync(path) ? path : undefined;
}

const path = publishedProto();
const absent = path === undefined ? `k8s.io/cri-api@${version} is not in Go's module cache` : false;

function publishedRoot(): protobuf.Namespace {
  const text = readFileSync(path!, 'utf8');
  const { root } = protobuf.parse(text, { keepCase: true });
  root.resolveAll();
  return root.lookup('runtime.v1') as protobuf.Namespace;
}

const camel = (name: string) => name.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase());

/** Every message, enum and service of the file, in the form of our tables; those of Windows are left out. */
function published() {
  const found = {
    messages: {} as Record<string, Record<string, readonly [number, string]>>,
    enums: {} as Record<string, readonly string[]>,
    services: {} as Record<string, Record<string, readonly string[]>>,
  };
  const visit = (object: protobuf.ReflectionObject) => {
    if (object.name.startsWith('Windows')) return;
    if (object instanceof protobuf.Type) {
      const fields = object.fieldsArray
        .filter((field) => !field.type.startsWith('Windows'))
        .map((field) => {
          const type = field.resolvedType?.name ?? field.type;
          if (field instanceof protobuf.MapField)
            assert.deepEqual([field.keyType, type], ['string', 'string']);
          const shown = field instanceof protobuf.MapField ? 'map' : `${type}${field.repeated ? '[]' : ''}`;
          return [camel(field.name), [field.id, shown]] as const;
        });
      found.messages[object.name] = Object.fromEntries(fields);
      object.nestedArray.forEach(visit);
    } else if (object instanceof protobuf.Enum) {
      const entries = Object.entries(object.values).sort(([, a], [, b]) => a - b);
      assert.deepEqual(
        entries.map(([, value]) => value),
        entries.map((_, index) => index),
        `${object.name} counts up from 0`,
      );
      found.enums[object.name] = entries.map(([name]) => name);
    } else if (object instanceof protobuf.Service) {
      const methods = object.methodsArray.map((method) => {
        assert.ok(!method.requestStream);
        return [
          method.name,
          [method.requestType, method.responseType, ...(method.responseStream ? ['stream'] : [])],
        ] as const;
      });
      found.services[object.name] = Object.fromEntries(methods);
    }
  };
  publishedRoot().nestedArray.forEach(visit);
  return found;
}

test('the tables are those of the published api.proto', { skip: absent }, () => {
  const theirs = published();
  assert.deepEqual(messages, theirs.messages);
  assert.deepEqual(enums, theirs.enums);
  assert.deepEqual(services, theirs.services);
});

/** A message with every field filled, to `depth`. */
function filled(name: MessageName, seed: number, depth = 4): Record<string, unknown> {
  const value = (type: string, index: number): unknown => {
    switch (type) {
      case 'string':
        return `text ${seed} ${index} é😀`;
      case 'bytes':
        return Buffer.from([0, 255, seed & 255, index]);
      case 'bool':
        return true;
      case 'int32':
        return index % 2 === 0 ? -seed - 1 : seed + 1;
      case 'uint32':
        return 0xffff_ffff - seed;
      case 'int64':
        return index % 2 === 0 ? -(2n ** 63n) + BigInt(seed) : 2n ** 63n - 1n - BigInt(seed);
      case 'uint64':
        return 2n ** 64n - 1n - BigInt(seed);
      case 'double':
        return seed + 0.25;
      case 'map':
        return { a: `${seed}`, '': 'empty', ['__proto__']: 'odd' };
    }
    if (Object.hasOwn(enums, type)) {
      const names = enums[type as keyof typeof enums];
      return names[(seed + index + 1) % names.length];
    }
    return depth === 0 ? undefined : filled(type as MessageName, seed + 1, depth - 1);
  };
  const fields = Object.entries(messages[name]) as [string, readonly [number, string]][];
  return Object.fromEntries(
    fields
      .map(([field, [number, type]]) => {
        const single = type.replace('[]', '');
        return [
          field,
          type.endsWith('[]') ? [value(single, number), value(single, number + 1)] : value(single, number),
        ] as const;
      })
      .filter(([, one]) => (Array.isArray(one) ? one[0] !== undefined : one !== undefined)),
  );
}

test('what is encoded is decoded again', () => {
  for (const name of Object.keys(messages) as MessageName[]) {
    for (const seed of [0, 1, 7]) {
      const bytes = encode(name, filled(name, seed) as WireInput<MessageName>);
      const back = decode(name, bytes);
      assert.deepEqual(encode(name, back as WireInput<MessageName>), bytes, name);
    }
  }
});

test('protobufjs reads what we write, and writes what we read', { skip: absent }, () => {
  const root = publishedRoot();
  for (const name of Object.keys(messages) as MessageName[]) {
    const type = root.lookupType(name);
    for (const seed of [0, 3]) {
      const ours = encode(name, filled(name, seed) as WireInput<MessageName>);
      const theirs = Buffer.from(type.encode(type.decode(ours)).finish());
      // Fields may be in another order: compared by what we read of both.
      assert.deepEqual(decode(name, theirs), decode(name, ours), name);
    }
  }
});

test('defaults are there and not sent', () => {
  assert.equal(encode('CreateContainerRequest', { podSandboxId: '' }).length, 0);
  const empty = decode('ContainerConfig', Buffer.alloc(0));
  assert.deepEqual(empty.command, []);
  assert.deepEqual(empty.labels, {});
  assert.equal(empty.metadata, undefined);
  assert.equal(empty.stopSignal, 'SIGNAL_RUNTIME_DEFAULT');
  assert.equal(decode('StopContainerRequest', Buffer.alloc(0)).timeout, 0n);
});

test('unknown fields are skipped, unknown values of enums kept as numbers', () => {
  // Fields 100 of every wire type, then VersionRequest.version.
  const bytes = Buffer.from([
    ...[0xa0, 0x06, 0x96, 0x01],
    ...[0xa1, 0x06, 1, 2, 3, 4, 5, 6, 7, 8],
    ...[0xa2, 0x06, 2, 9, 9],
    ...[0xa5, 0x06, 1, 2, 3, 4],
    ...[0x0a, 2, 0x76, 0x31],
  ]);
  assert.deepEqual(decode('VersionRequest', bytes), { version: 'v1' });
  assert.equal(decode('PortMapping', Buffer.from([0x08, 77])).protocol, 77);
});

test('packed and single numbers of a list are the same', () => {
  const packed = decode('PortForwardRequest', Buffer.from([0x12, 3, 80, 0x90, 0x03]));
  const single = decode('PortForwardRequest', Buffer.from([0x10, 80, 0x10, 0x90, 0x03]));
  assert.deepEqual(packed.port, [80, 400]);
  assert.deepEqual(single.port, [80, 400]);
});

test('a key __proto__ in a map is a key like others', () => {
  const bytes = encode('PodSandboxFilter', { labelSelector: { ['__proto__']: 'x' } });
  const { labelSelector } = decode('PodSandboxFilter', bytes);
  assert.equal(Object.getPrototypeOf(labelSelector), Object.prototype);
  assert.deepEqual(Object.entries(labelSelector), [['__proto__', 'x']]);
});

const malformed: readonly [string, readonly number[]][] = [
  ['a number without end', [0x08, 0xff]],
  ['a number that is too long', [0x08, ...Array(11).fill(0xff), 1]],
  ['a string longer than the message', [0x0a, 200, 1]],
  ['a length of 2^64', [0x0a, ...Array(9).fill(0xff), 1]],
  ['field number 0', [0x02, 0]],
  ['a group', [0x0b]],
  ['wire type 7', [0x0f]],
  ['a string of the wrong wire type', [0x08, 1]],
  ['a string that is not UTF-8', [0x0a, 2, 0xc3, 0x28]],
  ['an unknown field that is cut off', [0xa1, 0x06, 1, 2]],
];

for (const [what, bytes] of malformed) {
  test(`${what} is refused`, () => {
    assert.throws(() => decode('VersionRequest', Buffer.from(bytes)), { code: 'INVALID_ARGUMENT' });
  });
}

test('a message inside that ends too late is refused', () => {
  assert.throws(() => decode('ImageStatusRequest', Buffer.from([0x0a, 3, 0x0a, 9, 0x61])), {
    code: 'INVALID_ARGUMENT',
  });
});

test('a million empty messages are refused before they fill the memory', () => {
  // Mount is field 7 of ContainerConfig: two bytes on the wire for each.
  const bytes = Buffer.alloc(2_000_000, Buffer.from([0x3a, 0]));
  assert.throws(() => decode('ContainerConfig', bytes), { code: 'INVALID_ARGUMENT' });
});

test('random and damaged bytes are decoded or refused, never anything else', () => {
  let state = 42;
  const random = () => {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    return state;
  };
  const whole = encode('CreateContainerRequest', filled('CreateContainerRequest', 5) as never);
  let refused = 0;
  for (let round = 0; round < 3000; round++) {
    const bytes = Buffer.from(whole);
    for (let change = 0; change <= round % 5; change++) bytes[random() % bytes.length] = random() % 256;
    const cut = round % 3 === 0 ? bytes.subarray(0, random() % bytes.length) : bytes;
    try {
      decode('CreateContainerRequest', cut);
    } catch (error) {
      assert.equal((error as { code?: string }).code, 'INVALID_ARGUMENT');
      refused++;
    }
  }
  assert.ok(refused > 500, `only ${refused} were refused`);
});
