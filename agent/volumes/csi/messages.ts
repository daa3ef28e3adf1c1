/**
 * The node's part of csi.v1, the Container Storage Interface. Field: [number, type].
 * Held against the published csi.proto by test/agent/volumes/csi/messages.test.ts; what a node does not use is left out.
 */
import type { Service } from '../../plugins/channel.ts';

// biome-ignore format: one message, one entry
const messages = {
  'VolumeCapability': {
    block: [1, 'VolumeCapability.BlockVolume'], mount: [2, 'VolumeCapability.MountVolume'],
    accessMode: [3, 'VolumeCapability.AccessMode'],
  },
  'VolumeCapability.BlockVolume': {},
  'VolumeCapability.MountVolume': {
    fsType: [1, 'string'], mountFlags: [2, 'string[]'], volumeMountGroup: [3, 'string'],
  },
  'VolumeCapability.AccessMode': { mode: [1, 'VolumeCapability.AccessMode.Mode'] },
  'CapacityRange': { requiredBytes: [1, 'int64'], limitBytes: [2, 'int64'] },
  'Topology': { segments: [1, 'map'] },
  'NodeStageVolumeRequest': {
    volumeId: [1, 'string'], publishContext: [2, 'map'], stagingTargetPath: [3, 'string'],
    volumeCapability: [4, 'VolumeCapability'], secrets: [5, 'map'], volumeContext: [6, 'map'],
  },
  'NodeStageVolumeResponse': {},
  'NodeUnstageVolumeRequest': { volumeId: [1, 'string'], stagingTargetPath: [2, 'string'] },
  'NodeUnstageVolumeResponse': {},
  'NodePublishVolumeRequest': {
    volumeId: [1, 'string'], publishContext: [2, 'map'], stagingTargetPath: [3, 'string'],
    targetPath: [4, 'string'], volumeCapability: [5, 'VolumeCapability'], readonly: [6, 'bool'],
    secrets: [7, 'map'], volumeContext: [8, 'map'],
  },
  'NodePublishVolumeResponse': {},
  'NodeUnpublishVolumeRequest': { volumeId: [1, 'string'], targetPath: [2, 'string'] },
  'NodeUnpublishVolumeResponse': {},
  'NodeGetVolumeStatsRequest': {
    volumeId: [1, 'string'], volumePath: [2, 'string'], stagingTargetPath: [3, 'string'],
  },
  'NodeGetVolumeStatsResponse': { usage: [1, 'VolumeUsage[]'] },
  'VolumeUsage': {
    available: [1, 'int64'], total: [2, 'int64'], used: [3, 'int64'], unit: [4, 'VolumeUsage.Unit'],
  },
  'NodeGetCapabilitiesRequest': {},
  'NodeGetCapabilitiesResponse': { capabilities: [1, 'NodeServiceCapability[]'] },
  'NodeServiceCapability': { rpc: [1, 'NodeServiceCapability.RPC'] },
  'NodeServiceCapability.RPC': { type: [1, 'NodeServiceCapability.RPC.Type'] },
  'NodeGetInfoRequest': {},
  'NodeGetInfoResponse': {
    nodeId: [1, 'string'], maxVolumesPerNode: [2, 'int64'], accessibleTopology: [3, 'Topology'],
  },
  'NodeExpandVolumeRequest': {
    volumeId: [1, 'string'], volumePath: [2, 'string'], capacityRange: [3, 'CapacityRange'],
    stagingTargetPath: [4, 'string'], volumeCapability: [5, 'VolumeCapability'], secrets: [6, 'map'],
  },
  'NodeExpandVolumeResponse': { capacityBytes: [1, 'int64'] },
} as const;

const enums = {
  'VolumeCapability.AccessMode.Mode': [
    'UNKNOWN',
    'SINGLE_NODE_WRITER',
    'SINGLE_NODE_READER_ONLY',
    'MULTI_NODE_READER_ONLY',
    'MULTI_NODE_SINGLE_WRITER',
    'MULTI_NODE_MULTI_WRITER',
    'SINGLE_NODE_SINGLE_WRITER',
    'SINGLE_NODE_MULTI_WRITER',
  ],
  'VolumeUsage.Unit': ['UNKNOWN', 'BYTES', 'INODES'],
  'NodeServiceCapability.RPC.Type': [
    'UNKNOWN',
    'STAGE_UNSTAGE_VOLUME',
    'GET_VOLUME_STATS',
    'EXPAND_VOLUME',
    'RESERVED_4',
    'SINGLE_NODE_MULTI_WRITER',
    'VOLUME_MOUNT_GROUP',
    'GET_VOLUME_HEALTH',
    'GET_STORAGE_HEALTH',
  ],
} as const;

export const csiNodeService = {
  name: 'csi.v1.Node',
  schema: { name: 'csi.v1', messages, enums },
  methods: {
    NodeStageVolume: ['NodeStageVolumeRequest', 'NodeStageVolumeResponse'],
    NodeUnstageVolume: ['NodeUnstageVolumeRequest', 'NodeUnstageVolumeResponse'],
    NodePublishVolume: ['NodePublishVolumeRequest', 'NodePublishVolumeResponse'],
    NodeUnpublishVolume: ['NodeUnpublishVolumeRequest', 'NodeUnpublishVolumeResponse'],
    NodeGetVolumeStats: ['NodeGetVolumeStatsRequest', 'NodeGetVolumeStatsResponse'],
    NodeExpandVolume: ['NodeExpandVolumeRequest', 'NodeExpandVolumeResponse'],
    NodeGetCapabilities: ['NodeGetCapabilitiesRequest', 'NodeGetCapabilitiesResponse'],
    NodeGetInfo: ['NodeGetInfoRequest', 'NodeGetInfoResponse'],
  },
} as const satisfies Service<{ name: string; messages: typeof messages; enums: typeof enums }>;

export type NodeCapability = (typeof enums)['NodeServiceCapability.RPC.Type'][number];
export type AccessMode = (typeof enums)['VolumeCapability.AccessMode.Mode'][number];
