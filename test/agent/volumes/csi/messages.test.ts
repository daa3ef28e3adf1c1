import assert from 'node:assert/strict';
import { test } from 'node:test';
import { csiNodeService } from '../../../../agent/volumes/csi/messages.ts';
import { decode } from '../../../../runtime/host/protobuf/decode.ts';
import { encode } from '../../../../runtime/host/protobuf/encode.ts';
import { publishedFile, readProto } from '../../../peers/published-proto.ts';

/** The version that the tables were written from. */
const module = 'github.com/container-storage-interface/spec@v1.12.1-0.20260720052920-cd9e7ad1ae09';
const published = publishedFile(module, 'csi.proto');
const absent = published === undefined ? `${module} is not in Go's module cache` : false;
const { schema, methods } = csiNodeService;

test('the messages are those of the published csi.proto', { skip: absent }, () => {
  const theirs = readProto(published!, 'csi.v1');
  const ofThem = (all: Readonly<Record<string, unknown>>, ours: object) =>
    Object.fromEntries(Object.keys(ours).map((name) => [name, all[name]]));
  assert.deepEqual(schema.messages, ofThem(theirs.messages, schema.messages));
  assert.deepEqual(schema.enums, ofThem(theirs.enums, schema.enums));
  assert.deepEqual(methods, ofThem(theirs.services['Node']!, methods));
});

test('every type that is used is there', () => {
  const types = Object.values(schema.messages).flatMap((fields) =>
    (Object.values(fields) as (readonly [number, string])[]).map(([, type]) => type.replace('[]', '')),
  );
  const known = [...Object.keys(schema.messages), ...Object.keys(schema.enums)];
  const scalars = ['string', 'bool', 'int64', 'map'];
  assert.deepEqual(
    types.filter((type) => !known.includes(type) && !scalars.includes(type)),
    [],
  );
});

test('a mount without wishes is still a mount, and a device one', () => {
  for (const kind of [{ mount: {} }, { block: {} }]) {
    const bytes = encode(schema, 'VolumeCapability', kind);
    const back = decode(schema, 'VolumeCapability', bytes);
    assert.equal(back.mount !== undefined, 'mount' in kind);
    assert.equal(back.block !== undefined, 'block' in kind);
  }
});

test('protobufjs reads what we write', { skip: absent }, () => {
  const { root } = readProto(published!, 'csi.v1');
  const bytes = encode(schema, 'NodePublishVolumeRequest', {
    volumeId: 'v',
    targetPath: '/t',
    readonly: true,
    volumeContext: { a: 'b' },
    volumeCapability: {
      accessMode: { mode: 'SINGLE_NODE_MULTI_WRITER' },
      mount: { fsType: 'ext4', mountFlags: ['noatime'], volumeMountGroup: '5' },
    },
  });
  const type = root.lookupType('NodePublishVolumeRequest');
  assert.deepEqual(type.toObject(type.decode(bytes), { enums: String }), {
    volume_id: 'v',
    target_path: '/t',
    readonly: true,
    volume_context: { a: 'b' },
    volume_capability: {
      access_mode: { mode: 'SINGLE_NODE_MULTI_WRITER' },
      mount: { fs_type: 'ext4', mount_flags: ['noatime'], volume_mount_group: '5' },
    },
  });
});
