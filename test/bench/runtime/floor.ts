/**
 * What no runtime of these parts can go below, measured with the programs and calls themselves: the OCI runtime on the
 * very configuration that keelson wrote, one run of the bridge plugin, namespaces pinned, an overlay mounted.
 */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../../../runtime/host/exec.ts';
import { mount, umountFlags, unmount } from '../../../runtime/host/syscalls.ts';

export const floors = [
  'runc_create_start',
  'runc_exec',
  'bridge_add',
  'pin_namespaces',
  'overlay_mount',
] as const;
export type Floor = (typeof floors)[number];
/** Milliseconds of every single one. */
export type FloorTimes = Record<Floor, number[]>;

export const noFloors = (): FloorTimes =>
  Object.fromEntries(floors.map((floor) => [floor, []])) as unknown as FloorTimes;

export interface FloorBench {
  /** One of each. */
  measure(times: FloorTimes): Promise<void>;
}

interface Bundle {
  process: { args: string[] };
  linux: { cgroupsPath: string };
}

const deadlineMs = 60_000;
const network = {
  cniVersion: '1.0.0',
  name: 'floor',
  type: 'bridge',
  bridge: 'floor0',
  isGateway: true,
  ipMasq: true,
  hairpinMode: true,
};

/**
 * `bundle`: of a container whose sandbox and root file system stay for as long as is measured. `folder`: a new one's
 * path. `plugins`: where the network plugins are.
 */
export async function floorBench(
  bundle: string,
  folder: string,
  plugins: string,
  cgroup: string,
): Promise<FloorBench> {
  await mkdir(folder);
  const spec = JSON.parse(await readFile(join(bundle, 'config.json'), 'utf8')) as Bundle;
  const runcRoot = `--root=${join(folder, 'runc')}`;
  const quiet = (program: string, args: readonly string[]) =>
    exec('sh', ['-c', 'exec "$@" > /dev/null 2>&1', 'sh', program, ...args], { deadlineMs });
  let count = 0;

  const runc = async (times: FloorTimes) => {
    const id = `floor-${++count}`;
    const own = join(folder, id);
    await mkdir(own);
    spec.linux.cgroupsPath = `${cgroup}/${id}`;
    await writeFile(join(own, 'config.json'), JSON.stringify(spec));
    try {
      await timed(times, 'runc_create_start', async () => {
        await quiet('runc', [runcRoot, 'create', `--bundle=${own}`, id]);
        await exec('runc', [runcRoot, 'start', id], { deadlineMs });
      });
      await timed(times, 'runc_exec', () =>
        exec('runc', [runcRoot, 'exec', id, 'echo', 'there'], { deadlineMs }),
      );
    } finally {
      await exec('runc', [runcRoot, 'delete', '--force', id], { deadlineMs });
    }
  };

  const bridge = async (times: FloorTimes) => {
    const id = `floor-${++count}`;
    await exec('ip', ['netns', 'add', id], { deadlineMs });
    const range = [{ subnet: '10.91.0.0/16' }];
    const ipam = {
      type: 'host-local',
      dataDir: join(folder, 'ipam'),
      ranges: [range],
      routes: [{ dst: '0.0.0.0/0' }],
    };
    const run = (command: 'ADD' | 'DEL') =>
      exec(join(plugins, 'bridge'), [], {
        env: {
          PATH: process.env['PATH']!,
          CNI_COMMAND: command,
          CNI_CONTAINERID: id,
          CNI_NETNS: `/run/netns/${id}`,
          CNI_IFNAME: 'eth0',
          CNI_PATH: plugins,
        },
        input: JSON.stringify({ ...network, ipam }),
        deadlineMs,
      });
    try {
      await timed(times, 'bridge_add', () => run('ADD'));
      await run('DEL');
    } finally {
      await exec('ip', ['netns', 'del', id], { deadlineMs });
    }
  };

  const pin = async (times: FloorTimes) => {
    const at = (name: string) => join(folder, `pin-${name}`);
    const kinds = ['net', 'ipc', 'uts'];
    for (const kind of kinds) await writeFile(at(kind), '');
    await timed(times, 'pin_namespaces', () =>
      exec('unshare', [...kinds.map((kind) => `--${kind}=${at(kind)}`), 'true'], { deadlineMs }),
    );
    for (const kind of kinds) unmount(at(kind), umountFlags.DETACH);
  };

  const overlay = async (times: FloorTimes) => {
    const at = (name: string) => join(folder, `overlay-${++count}-${name}`);
    const [lower, upper, work, target] = ['lower', 'upper', 'work', 'target'].map(at) as [
      ...[string, string, string, string],
    ];
    await Promise.all([lower, upper, work, target].map((path) => mkdir(path)));
    const options = `lowerdir=${lower},upperdir=${upper},workdir=${work}`;
    await timed(times, 'overlay_mount', async () => mount('overlay', target, 'overlay', 0, options));
    unmount(target, umountFlags.DETACH);
  };

  return {
    async measure(times) {
      for (const part of [runc, bridge, pin, overlay]) await part(times);
    },
  };
}

async function timed(times: FloorTimes, floor: Floor, work: () => Promise<unknown>): Promise<void> {
  const from = performance.now();
  await work();
  times[floor].push(performance.now() - from);
}
