/**
 * A place for the real plugins of the CNI project: network namespaces, bridges and address ranges of a test's own. The
 * "host" is a namespace of this process too, so that bridges and iptables rules meet nobody else's and are gone with it.
 */
import { execFileSync } from 'node:child_process';
import { randomBytes, randomInt } from 'node:crypto';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { cloneFlags, unshare } from '../../runtime/host/syscalls.ts';
import { setUp } from './scripted.ts';

export const pluginFolder = ['/usr/lib/cni', '/opt/cni/bin', '/usr/libexec/cni'].find((folder) =>
  existsSync(join(folder, 'bridge')),
);
/** Why the tests cannot run here; false where they can. */
export const skip =
  pluginFolder === undefined
    ? 'no CNI plugins (package containernetworking-plugins)'
    : process.getuid?.() !== 0 && 'not root';

// Programs are started by this thread and so inherit its namespace.
if (!skip) unshare(cloneFlags.NEWNET);

/** Standard output; empty where the program fails. */
export function tryRun(program: string, ...args: string[]): string {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  } catch {
    return '';
  }
}

export interface Lab extends ReturnType<typeof setUp> {
  readonly bridge: string;
  /** `10.a.b` of a subnet of this test's own. */
  readonly net4: string;
  readonly net6: string;
  readonly leases: string;
  /** A new network namespace: its path. */
  namespace(): string;
  /** Addresses of eth0 in it, without prefix lengths. */
  addresses(netns: string): string[];
  hostLocal(more?: object): object;
  /** Addresses that host-local holds for the network. */
  leased(network?: string): string[];
}

export function lab(t: TestContext): Lab {
  const setup = setUp(t);
  const id = randomBytes(4).toString('hex');
  const bridge = `kt${id}`;
  const net4 = `10.${randomInt(130, 250)}.${randomInt(0, 255)}`;
  // No group begins with a zero, so that addresses read as they are written.
  const net6 = `fd${id.slice(0, 2)}:1${id.slice(2, 5)}:1${id.slice(5, 8)}:`;
  const leases = join(setup.root, 'leases');
  let count = 0;
  t.after(() => tryRun('ip', 'link', 'del', bridge));
  tryRun('ip', 'link', 'set', 'lo', 'up');
  return {
    ...setup,
    cni: (options = {}) => setup.cni({ binDirs: [pluginFolder!, setup.binDir], ...options }),
    bridge,
    net4,
    net6,
    leases,
    namespace() {
      const name = `keelson-test-${id}-${count++}`;
      execFileSync('ip', ['netns', 'add', name]);
      t.after(() => tryRun('ip', 'netns', 'del', name));
      execFileSync('ip', ['-n', name, 'link', 'set', 'lo', 'up']);
      return `/run/netns/${name}`;
    },
    addresses(netns) {
      const shown = tryRun(
        'ip',
        '-n',
        netns.split('/').at(-1)!,
        '-j',
        'address',
        'show',
        'dev',
        'eth0',
        'scope',
        'global',
      );
      if (shown === '') return [];
      const [link] = JSON.parse(shown) as { addr_info: { local?: string }[] }[];
      return link?.addr_info.flatMap(({ local }) => local ?? []) ?? [];
    },
    hostLocal: (more = {}) => ({
      type: 'host-local',
      dataDir: leases,
      ranges: [[{ subnet: `${net4}.0/24` }]],
      routes: [{ dst: '0.0.0.0/0' }],
      ...more,
    }),
    leased(network = 'pods') {
      const folder = join(leases, network);
      return existsSync(folder)
        ? readdirSync(folder).filter((name) => /^[0-9a-f.:]+$/.test(name) && !name.startsWith('last'))
        : [];
    },
  };
}

/** A bridge plugin's configuration with addresses of host-local. */
export const bridgeOf = ({ bridge, hostLocal }: Lab, more: object = {}, ipam: object = {}) => ({
  type: 'bridge',
  bridge,
  isGateway: true,
  ipam: hostLocal(ipam),
  ...more,
});
