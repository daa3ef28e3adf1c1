/** The CSI driver of test/peers/csi-driver as a program of its own: built once, started and ended at will. */
import { createHash } from 'node:crypto';
import { mkdir, readFile, rm } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { goPrograms } from './go-programs.ts';
import { startDaemon } from './process.ts';

const pins = join(dirname(fileURLToPath(import.meta.url)), 'csi-driver');

/** The program's path, or why it cannot be had here. Throws EXEC_FAILED where the build fails. */
export async function csiProgram(): Promise<string | { readonly missing: string }> {
  const source = createHash('sha256')
    .update(await readFile(join(pins, 'main.go')))
    .digest('hex');
  const built = await goPrograms({
    pins,
    label: `csi-driver-${source.slice(0, 8)}`,
    programs: [{ name: 'csi-driver', package: '.', ldflags: '-s -w' }],
    hint: 'no go on the PATH to build a CSI driver with: install Go',
  });
  return 'missing' in built ? built : join(built.folder, 'csi-driver');
}

export interface CsiProgramOptions {
  readonly program: string;
  readonly kubeletDir: string;
  /** Where its volumes are. */
  readonly folder: string;
  readonly name: string;
  readonly nodeId: string;
}

export interface CsiProgram {
  /** Its calls so far, of all its lives. */
  calls(): Promise<{ readonly method: string; readonly request: { readonly error?: string } }[]>;
  /** Ends it as a removal of its pod does: its sockets go. */
  stop(): Promise<void>;
}

export async function startCsiProgram(options: CsiProgramOptions): Promise<CsiProgram> {
  const { program, kubeletDir, folder, name, nodeId } = options;
  const endpoint = join(kubeletDir, 'plugins', name, 'csi.sock');
  const register = join(kubeletDir, 'plugins_registry', `${name}-reg.sock`);
  await mkdir(dirname(endpoint), { recursive: true });
  await mkdir(folder, { recursive: true });
  const logFile = join(folder, 'driver.log');
  const args = { name, endpoint, register, state: folder, node: nodeId };
  const daemon = await startDaemon(
    program,
    Object.entries(args).map(([key, value]) => `-${key}=${value}`),
    { logFile },
  );
  return {
    async calls() {
      const lines = (await readFile(logFile, 'utf8')).trim().split('\n');
      return lines.flatMap((line) => (line.startsWith('{') ? [JSON.parse(line)] : []));
    },
    async stop() {
      await daemon.stop();
      await Promise.all([endpoint, register].map((socket) => rm(socket, { force: true })));
    },
  };
}
