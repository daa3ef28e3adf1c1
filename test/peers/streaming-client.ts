/**
 * The client side of kubectl's exec, attach and port-forward: client-go's own code, built once from
 * test/peers/streaming into a cache folder outside the checkout.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { access, mkdir, readFile, rename } from 'node:fs/promises';
import { homedir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';

const sources = join(dirname(fileURLToPath(import.meta.url)), 'streaming');

/** The program's path, or why it cannot be had here. Throws EXEC_FAILED where the build fails. */
export async function streamingClient(): Promise<string | { readonly missing: string }> {
  const hash = createHash('sha256').update(process.arch);
  for (const name of ['go.mod', 'go.sum', 'main.go']) hash.update(await readFile(join(sources, name)));
  const cache = join(process.env['XDG_CACHE_HOME'] || join(homedir(), '.cache'), 'keelson');
  const program = join(cache, `streaming-client-${hash.digest('hex').slice(0, 12)}`);
  if (await there(program)) return program;
  await mkdir(cache, { recursive: true });
  const temporary = `${program}.${process.pid}.partial`;
  try {
    await exec('go', ['build', '-mod=readonly', '-trimpath', '-ldflags', '-s -w', '-o', temporary, '.'], {
      cwd: sources,
      env: { ...(process.env as Record<string, string>), CGO_ENABLED: '0', GOFLAGS: '' },
      deadlineMs: 20 * 60_000,
    });
  } catch (error) {
    if (isError(error, 'EXEC_NOT_FOUND')) return { missing: 'no go on the PATH to build the client with' };
    throw error;
  }
  await rename(temporary, program);
  return program;
}

const there = (path: string) =>
  access(path).then(
    () => true,
    () => false,
  );

export interface ClientResult {
  /** The command's exit code; 125 for what the client itself failed of. */
  readonly code: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

export interface RunningClient extends ChildProcessWithoutNullStreams {
  /** Resolves when it has ended and its output is read. */
  readonly result: Promise<ClientResult>;
  /** Resolves when standard output matches; rejects when the client ends before. */
  said(pattern: RegExp): Promise<RegExpExecArray>;
}

const deadlineMs = 6_000;

/** Starts it; it is killed when it takes longer than a minute. `keep` false: its standard output is the caller's to read. */
export function startClient(program: string, args: readonly string[], keep = true): RunningClient {
  const child = spawn(program, args);
  const timer = setTimeout(() => child.kill('SIGKILL'), deadlineMs);
  const chunks: Buffer[] = [];
  let stderr = '';
  const looks = new Set<() => void>();
  if (keep) {
    child.stdout.on('data', (chunk: Buffer) => {
      chunks.push(chunk);
      for (const look of looks) look();
    });
  }
  child.stderr.on('data', (chunk: Buffer) => {
    stderr += chunk.toString();
  });
  child.stdin.on('error', () => {});
  const result = new Promise<ClientResult>((resolve) => {
    child.once('close', (code) => {
      clearTimeout(timer);
      resolve({ code, stdout: Buffer.concat(chunks), stderr });
    });
  });
  const said = (pattern: RegExp) =>
    new Promise<RegExpExecArray>((resolve, reject) => {
      const look = () => {
        const match = pattern.exec(Buffer.concat(chunks).toString('latin1'));
        if (match === null) return;
        looks.delete(look);
        resolve(match);
      };
      looks.add(look);
      look();
      void result.then(({ stdout }) =>
        reject(new Error(`the client ended; it said ${JSON.stringify(stdout.toString())} and ${stderr}`)),
      );
    });
  return Object.assign(child, { result, said });
}
