/** nfs volumes: mount(8) and its helper mount.nfs do it, in a process that can be given up. */

import { isMounted, mountByProgram, unmountByProgram } from './filesystem.ts';
import type { VolumeKind } from './kind.ts';

export function nfsKind(): VolumeKind {
  return {
    plugin: 'kubernetes.io~nfs',
    has: ({ nfs }) => !!nfs,
    async setUp({ source, folder, readOnly, mountOptions, signal }) {
      const { server, path, readOnly: always = false } = source.nfs!;
      const isReadOnly = readOnly || always;
      const host = server.includes(':') && !server.startsWith('[') ? `[${server}]` : server;
      const options = [...(isReadOnly ? ['ro'] : []), ...mountOptions];
      await mountByProgram(`${host}:${path}`, folder, 'nfs', options, signal);
      return { hostPath: folder, readOnly: isReadOnly };
    },
    async tearDown({ folder, signal }) {
      if (await isMounted(folder)) await unmountByProgram(folder, signal);
    },
  };
}
