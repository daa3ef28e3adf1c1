/** The pullers that are compared: each pulls one image into an empty store on a fresh file system. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, mkdir, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { exec } from '../../../runtime/host/exec.ts';
import type { ContainerdPrograms } from '../../peers/containerd.ts';
import { startDaemon, waitFor } from '../../peers/process.ts';
import type { Kind } from './image.ts';
import type { PullReport } from './keelson.ts';
import type { Meter } from './meter.ts';

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, '../../..');
const deadlineMs = 300_000;

export interface Round {
  /** On the fresh file system; everything that the puller writes goes below it. */
  readonly folder: string;
  /** For logs and scripts, on another file system. */
  readonly scratch: string;
  readonly meter: Meter;
  readonly kind: Kind;
  /** The image as `HOST/NAME:TAG`. */
  readonly image: string;
  /** The config digest. */
  readonly id: string;
  /** Addresses of its layers in the registry. */
  readonly layers: readonly string[];
  readonly signal: AbortSignal;
}

export interface Measured {
  readonly seconds: number;
  readonly cpuSeconds: number;
  readonly peakMib: number;
  readonly mainBlockMs?: number;
  readonly mainBlockOwnMs?: number;
}

export type Puller = (round: Round) => Promise<Measured>;

/**
 * Started by packaging/keelson with all that it sets, only that the program is keelson.ts of this folder instead of the
 * command line: what the launcher takes for Node.js is a script that exchanges the two. Its start does not count, as
 * the start of containerd's daemon does not.
 */
export const keelson: Puller = async ({ folder, scratch, meter, image, id, signal }) => {
  const shim = join(scratch, 'node-for-keelson');
  await writeFile(
    shim,
    `#!/bin/sh
case " $* " in *' bench-pull '*)
  for argument; do
    shift
    case $argument in */agent/cli.ts) argument=${join(here, 'keelson.ts')} ;; esac
    set -- "$@" "$argument"
  done ;;
esac
exec ${process.execPath} "$@"
`,
  );
  await chmod(shim, 0o755);
  const [program, args] = meter.inside(join(root, 'packaging/keelson'), ['bench-pull', folder, image]);
  const child = spawn(program, args, {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, KEELSON_NODE: shim },
    signal,
    killSignal: 'SIGKILL',
  });
  // Where it has ended, `ended` tells more.
  child.stdin.on('error', () => {});
  const ended = endOf(child);
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const line = await lines.next();
    if (line.done === true) throw new Error(`keelson has ended before its time, ${await ended}`);
    return JSON.parse(line.value) as unknown;
  };
  await next();
  const before = await meter.cpuSeconds();
  child.stdin.write('pull\n');
  const report = (await next()) as PullReport;
  const cpuSeconds = (await meter.cpuSeconds()) - before;
  child.stdin.end();
  const how = await ended;
  if (how !== 'exit code 0') throw new Error(`keelson ended with ${how}`);
  if (report.id !== id) throw new Error(`keelson has pulled ${report.id} instead of ${id}`);
  return { ...report, cpuSeconds, peakMib: Math.max(report.peakMib, meter.peakMib()) };
};

async function endOf(child: ChildProcess): Promise<string> {
  try {
    const [code, signal] = await once(child, 'exit');
    return signal === null ? `exit code ${code}` : String(signal);
  } catch (error) {
    return String(error);
  }
}

/**
 * A daemon with nothing but what pulling needs, and `ctr images pull` with the transfer service, which pulls in the
 * daemon as its CRI does since 2.1, with the same three downloads at once. Debian has no crictl.
 */
export function containerd(programs: ContainerdPrograms): Puller {
  return async ({ folder, scratch, meter, image, signal }) => {
    const config = join(scratch, 'containerd.toml');
    const socket = join(scratch, 'containerd.sock');
    const withoutUse = [
      'io.containerd.grpc.v1.cri',
      'io.containerd.cri.v1.images',
      'io.containerd.cri.v1.runtime',
    ];
    withoutUse.push(
      'io.containerd.nri.v1.nri',
      'io.containerd.internal.v1.opt',
      'io.containerd.snapshotter.v1.erofs',
    );
    await writeFile(
      config,
      `version = 3
root = '${join(folder, 'root')}'
state = '${join(folder, 'state')}'
temp = '${join(folder, 'temp')}'
disabled_plugins = ${JSON.stringify(withoutUse)}
[grpc]
address = '${socket}'
`,
    );
    const [program, args] = meter.inside(
      ...(await apart(folder, programs.containerd, ['--config', config, '--log-level', 'warn'])),
    );
    const daemon = await startDaemon(program, args, { logFile: join(scratch, 'containerd.log') });
    try {
      await waitFor(
        'containerd to answer',
        () => exec(programs.ctr, ['--address', socket, 'version'], { deadlineMs: 10_000, signal }),
        { deadlineMs: 30_000, daemon },
      );
      return await timed(meter, async () => {
        const pull = [
          '--address',
          socket,
          'images',
          'pull',
          '--plain-http',
          '--snapshotter',
          'overlayfs',
          image,
        ];
        const [ctr, ctrArgs] = meter.inside(programs.ctr, pull);
        await exec(ctr, ctrArgs, { deadlineMs, signal, onOverflow: 'discard' });
      });
    } finally {
      await daemon.stop();
    }
  };
}

/** It has no daemon: its start counts. As root it uses the kernel's overlay. */
export const podman: Puller = async ({ folder, meter, image, signal }) => {
  const temporary = join(folder, 'tmp');
  await mkdir(temporary);
  const pull = ['--storage-driver', 'overlay', 'pull', '--quiet', '--tls-verify=false', image];
  const [program, args] = meter.inside(...(await apart(folder, 'podman', pull)));
  const env = { PATH: process.env['PATH'] ?? '', HOME: folder, TMPDIR: temporary };
  return timed(meter, () => exec(program, args, { deadlineMs, signal, env }).then(() => {}));
};

/**
 * Runs `program` with mounts of its own, in which /var/lib is an empty folder of the fresh file system and /run and
 * /dev/shm are empty: it finds nothing of the machine's own store and caches, and leaves nothing behind.
 */
async function apart(
  folder: string,
  program: string,
  args: readonly string[],
): Promise<[string, readonly string[]]> {
  const lib = join(folder, 'lib');
  await mkdir(lib);
  const script = `mount --bind "$0" /var/lib && mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && exec "$@"`;
  return ['unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script, lib, program, ...args]];
}

/** The limit: nothing but download, decompress and unpack, two layers at a time; no digest is checked. */
export const floor: Puller = async ({ folder, meter, kind, layers, signal }) => {
  const decompress = kind === 'gzip' ? 'zcat' : 'zstd -dc';
  const one = `mkdir "$1" && curl -sSf "$2" | ${decompress} | tar -x -C "$1"`;
  const script = `set -e; cd "$0"; n=0; for url; do n=$((n + 1)); echo "layer$n $url"; done |
    xargs -P 2 -L 1 sh -c '${one}' sh`;
  const [program, args] = meter.inside('sh', ['-c', script, folder, ...layers]);
  return timed(meter, () => exec(program, args, { deadlineMs, signal }).then(() => {}));
};

async function timed(meter: Meter, run: () => Promise<void>): Promise<Measured> {
  const before = await meter.cpuSeconds();
  const started = performance.now();
  await run();
  const seconds = (performance.now() - started) / 1000;
  return { seconds, cpuSeconds: (await meter.cpuSeconds()) - before, peakMib: meter.peakMib() };
}
