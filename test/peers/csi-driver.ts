/**
 * A CSI driver's node service in this process, with real mounts: file systems are folders below `stateDir`, devices are
 * loop devices. It checks what a node must keep to, and can be made to behave badly.
 */
import { mkdir, rm, rmdir, stat, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { csiNodeService, type NodeCapability } from '../../agent/volumes/csi/messages.ts';
import { isMounted } from '../../agent/volumes/kinds/filesystem.ts';
import { exec } from '../../runtime/host/exec.ts';
import { mount, mountFlags, unmount } from '../../runtime/host/syscalls.ts';
import { grpcError, type Methods, type Served, serve } from './plugin.ts';

type Strings = Readonly<Record<string, string>>;
export interface Call {
  readonly method: string;
  readonly request: {
    readonly volumeId: string;
    readonly stagingTargetPath: string;
    readonly targetPath: string;
    readonly volumePath: string;
    readonly readonly: boolean;
    readonly secrets: Strings;
    readonly volumeContext: Strings;
    readonly publishContext: Strings;
    readonly volumeCapability?: {
      readonly block?: object;
      readonly mount?: {
        readonly fsType: string;
        readonly mountFlags: readonly string[];
        readonly volumeMountGroup: string;
      };
      readonly accessMode?: { readonly mode: string };
    };
    readonly capacityRange?: { readonly requiredBytes: bigint };
  };
}

export interface FakeCsiDriver extends Served {
  readonly calls: Call[];
  /** The methods that were called, in order, without those that only ask. */
  names(): string[];
  /** Replaces a method; it gets the request and what the method would have done. */
  readonly behave: Map<string, (request: Call['request'], proper: () => Promise<unknown>) => unknown>;
}

export interface FakeCsiOptions {
  readonly socket: string;
  readonly stateDir: string;
  readonly capabilities?: readonly NodeCapability[];
  readonly topology?: Strings;
  readonly maxVolumes?: number;
}

const blockBytes = 1 << 20;

export async function startCsiDriver(options: FakeCsiOptions): Promise<FakeCsiDriver> {
  const { socket, stateDir, capabilities = ['STAGE_UNSTAGE_VOLUME'], topology, maxVolumes = 0 } = options;
  const calls: Call[] = [];
  const behave: FakeCsiDriver['behave'] = new Map();
  const stages = capabilities.includes('STAGE_UNSTAGE_VOLUME');
  const folderOf = (id: string) => join(stateDir, 'volumes', id);

  const bind = async (source: string, target: string, readOnly: boolean) => {
    if (await isMounted(target)) return;
    mount(source, target, null, mountFlags.BIND);
    if (readOnly) mount(null, target, null, mountFlags.BIND | mountFlags.REMOUNT | mountFlags.RDONLY);
  };
  const unbind = async (target: string) => {
    while (await isMounted(target)) unmount(target);
  };
  const need = (value: string, what: string) => {
    if (value === '') throw grpcError('INVALID_ARGUMENT', `${what} is missing`);
  };
  const imageOf = (id: string) => join(stateDir, `${id}.img`);
  const loopOf = async (id: string): Promise<string> => {
    const { stdout } = await exec('losetup', ['-j', imageOf(id), '-n', '-O', 'NAME'], { deadlineMs: 10_000 });
    return stdout.toString('utf8').trim().split('\n')[0] ?? '';
  };

  const proper: Record<string, (request: Call['request']) => Promise<unknown>> = {
    async NodeStageVolume({ volumeId, stagingTargetPath, volumeCapability }) {
      need(volumeId, 'volume id');
      need(stagingTargetPath, 'staging path');
      if (!(await stat(stagingTargetPath)).isDirectory()) throw grpcError('INTERNAL', 'no staging folder');
      if (volumeCapability?.block) return;
      await mkdir(folderOf(volumeId), { recursive: true });
      await bind(folderOf(volumeId), stagingTargetPath, false);
    },
    async NodeUnstageVolume({ volumeId, stagingTargetPath }) {
      need(volumeId, 'volume id');
      await unbind(stagingTargetPath);
    },
    async NodePublishVolume({ volumeId, stagingTargetPath, targetPath, volumeCapability, readonly }) {
      need(volumeId, 'volume id');
      need(targetPath, 'target path');
      if (volumeCapability?.block) {
        if (!(await stat(imageOf(volumeId)).catch(() => undefined)))
          await writeFile(imageOf(volumeId), Buffer.alloc(blockBytes));
        if ((await loopOf(volumeId)) === '')
          await exec('losetup', ['-f', imageOf(volumeId)], { deadlineMs: 10_000 });
        if (await isMounted(targetPath)) return;
        await writeFile(targetPath, '');
        mount(await loopOf(volumeId), targetPath, null, mountFlags.BIND);
        return;
      }
      // Volumes of pods themselves are never staged.
      const source = stages && stagingTargetPath !== '' ? stagingTargetPath : folderOf(volumeId);
      if (source === stagingTargetPath && !(await isMounted(source)))
        throw grpcError('FAILED_PRECONDITION', 'the volume is not staged');
      await mkdir(folderOf(volumeId), { recursive: true });
      await mkdir(targetPath, { recursive: true });
      await bind(source, targetPath, readonly);
    },
    async NodeUnpublishVolume({ volumeId, targetPath }) {
      need(volumeId, 'volume id');
      await unbind(targetPath);
      const facts = await stat(targetPath).catch(() => undefined);
      if (facts?.isDirectory()) await rmdir(targetPath);
      else await rm(targetPath, { force: true });
      const device = (await stat(imageOf(volumeId)).catch(() => undefined)) && (await loopOf(volumeId));
      if (device) await exec('losetup', ['-d', device], { deadlineMs: 10_000 });
    },
    NodeGetVolumeStats: async () => ({
      usage: [
        { available: 60, total: 100, used: 40, unit: 'BYTES' },
        { available: 6, total: 10, used: 4, unit: 'INODES' },
      ],
    }),
    NodeExpandVolume: async ({ capacityRange }) => ({ capacityBytes: capacityRange?.requiredBytes ?? 0n }),
    NodeGetCapabilities: async () => ({
      capabilities: capabilities.map((type) => ({ rpc: { type } })),
    }),
    NodeGetInfo: async () => ({
      nodeId: 'node-id',
      maxVolumesPerNode: maxVolumes,
      ...(topology === undefined ? {} : { accessibleTopology: { segments: topology } }),
    }),
  };
  const methods: Record<string, (request: never) => unknown> = {};
  for (const [method, body] of Object.entries(proper)) {
    methods[method] = (request: Call['request']) => {
      calls.push({ method, request });
      const other = behave.get(method);
      return other === undefined ? body(request) : other(request, () => body(request));
    };
  }
  const served = await serve(socket, [{ service: csiNodeService, methods: methods as Methods }]);
  return {
    ...served,
    calls,
    behave,
    names: () =>
      calls
        .map(({ method }) => method)
        .filter((method) => method !== 'NodeGetInfo' && method !== 'NodeGetCapabilities'),
  };
}
