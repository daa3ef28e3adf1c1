/** Debian's own containerd, without its CRI, in a folder of a test's own: for what `ctr` makes of images. */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { startDaemon, waitFor } from './process.ts';

const disabled = [
  'io.containerd.grpc.v1.cri',
  ...['btrfs', 'zfs', 'devmapper', 'aufs'].map((name) => `io.containerd.snapshotter.v1.${name}`),
];

export interface Ctr {
  /** Removed at the end of the test. */
  readonly folder: string;
  /** Runs `ctr` and returns its standard output. */
  ctr(...args: string[]): string;
}

export async function startCtr(t: { after(fn: () => Promise<void>): void }): Promise<Ctr> {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-'));
  const address = join(folder, 'containerd.sock');
  const config = join(folder, 'config.toml');
  mkdirSync(join(folder, 'plugins'));
  writeFileSync(
    config,
    [
      'version = 2',
      `disabled_plugins = ${JSON.stringify(disabled)}`,
      '[plugins."io.containerd.internal.v1.opt"]',
      `path = ${JSON.stringify(join(folder, 'plugins'))}`,
      '',
    ].join('\n'),
  );
  const args = ['--config', config, '--root', join(folder, 'root'), '--state', join(folder, 'state')];
  const daemon = await startDaemon('containerd', [...args, '--address', address], {
    logFile: join(folder, 'log'),
  });
  t.after(async () => {
    await daemon.kill();
    rmSync(folder, { recursive: true, force: true });
  });
  const ctr = (...rest: string[]) =>
    execFileSync('ctr', ['--address', address, '-n', 'test', ...rest], { encoding: 'utf8', stdio: 'pipe' });
  await waitFor('containerd', async () => ctr('version'), { deadlineMs: 60_000, everyMs: 50, daemon });
  return { folder, ctr };
}
