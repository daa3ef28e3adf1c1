/** Starts Debian's docker-registry (package docker-registry) on a loopback port with storage of its own. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface Registry {
  /** `127.0.0.1:PORT`, as it stands in image references. */
  readonly host: string;
  /** Its storage; gone after `close`. */
  readonly folder: string;
  /** The access and error log so far. */
  log(): string;
  close(): Promise<void>;
}

/** Whether a registry can be started here; false means that the package docker-registry is missing. */
export function hasRegistry(): boolean {
  return (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, 'docker-registry')));
}

export interface RegistryKind {
  /** URL of the registry of which this one is a pull-through cache. */
  readonly remote?: string;
}

/** Resolves when the registry answers. Ends with `t` (a test context) where one is given, else with `close`. */
export async function startRegistry(
  t?: { after(fn: () => Promise<void>): void },
  kind: RegistryKind = {},
): Promise<Registry> {
  if (!hasRegistry()) throw new Error('docker-registry is missing: apt-get install docker-registry');
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-registry-'));
  try {
    // The port is free when we look; somebody may take it before the registry does.
    for (let attempt = 1; ; attempt++) {
      const registry = await startOnce(folder, await freePort(), kind);
      if (typeof registry !== 'string') {
        t?.after(registry.close);
        return registry;
      }
      if (attempt === 5) throw new Error(`docker-registry does not start: ${registry}`);
    }
  } catch (error) {
    await rm(folder, { recursive: true, force: true });
    throw error;
  }
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as { port: number };
  server.close();
  await once(server, 'close');
  return port;
}

/** The running registry, or what it said when it ended. */
async function startOnce(folder: string, port: number, kind: RegistryKind): Promise<Registry | string> {
  const host = `127.0.0.1:${port}`;
  const config = join(folder, 'config.yml');
  await writeFile(
    config,
    `version: 0.1
log: { level: info, accesslog: { disabled: false } }
storage:
  filesystem: { rootdirectory: ${join(folder, 'storage')} }
  delete: { enabled: true }
http: { addr: '${host}', secret: keelson-test }
${kind.remote === undefined ? '' : `proxy: { remoteurl: '${kind.remote}' }\n`}`,
  );
  const child = spawn('docker-registry', ['serve', config], { stdio: ['ignore', 'pipe', 'pipe'] });
  let text = '';
  const answering = new Promise<boolean>((resolve) => {
    const collect = (chunk: Buffer) => {
      text += chunk.toString('utf8');
      if (text.includes('listening on')) resolve(true);
    };
    child.stdout.on('data', collect);
    child.stderr.on('data', collect);
    child.once('error', () => resolve(false));
    child.once('exit', () => resolve(false));
  });
  if (!(await answering) || !(await answers(`http://${host}/v2/`, child))) return text;
  let closing: Promise<void> | undefined;
  return {
    host,
    folder,
    log: () => text,
    close: () => {
      closing ??= end(child).then(() => rm(folder, { recursive: true, force: true }));
      return closing;
    },
  };
}

/** It logs `listening` a moment before it does: asks until it answers or ends. */
async function answers(url: string, child: ChildProcess): Promise<boolean> {
  while (child.exitCode === null && child.signalCode === null) {
    try {
      const response = await fetch(url);
      await response.arrayBuffer();
      return response.ok;
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }
  return false;
}

async function end(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  child.kill('SIGKILL');
  await once(child, 'exit');
}
