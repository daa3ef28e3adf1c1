/** What the runtime tells of itself and of what it runs, for kubelets and for people who look closer. */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RuntimeDetails } from '../api.ts';
import type { Context } from '../context.ts';
import { KeelsonError } from '../host/errors.ts';
import { pinnedNetwork } from '../sandbox_namespaces.ts';

export function makeDetails(context: Context): RuntimeDetails {
  const { state, folders, cgroupDriver } = context;
  const specificationIn = async (bundle: string): Promise<unknown> => {
    try {
      return JSON.parse(await readFile(join(bundle, 'config.json'), 'utf8'));
    } catch {
      return undefined; // Removed meanwhile, or a sandbox without a process of its own.
    }
  };
  return {
    cgroupDriver,
    async containerInfo(id) {
      const record = state.containers.get(id);
      if (record === undefined || record.state === 'creating') {
        throw new KeelsonError('NOT_FOUND', `there is no container ${JSON.stringify(id)}`);
      }
      const { sandboxId, init, config, imageId, cgroup } = record;
      const { bundle, rootfs } = folders.container(id);
      return {
        sandboxID: sandboxId,
        pid: init?.pid ?? 0,
        image: imageId,
        rootfs,
        cgroup,
        runtimeHandler: state.sandboxes.get(sandboxId)?.handler ?? '',
        config,
        runtimeSpec: await specificationIn(bundle),
      };
    },
    async sandboxInfo(id) {
      const record = state.sandboxes.get(id);
      if (record === undefined || record.state === 'creating') {
        throw new KeelsonError('NOT_FOUND', `there is no sandbox ${JSON.stringify(id)}`);
      }
      const { init, config, handler, ips, attached } = record;
      const folder = folders.sandbox(id);
      return {
        pid: init?.pid ?? 0,
        runtimeHandler: handler,
        networkNamespace: pinnedNetwork(folder),
        attached,
        ips,
        config,
        runtimeSpec: await specificationIn(join(folder, 'init')),
      };
    },
  };
}
