/** CNI plugins for tests: small shell scripts that note how they were called, and a folder setup around them. */
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { type Attachment, makeCni } from '../../cni/network.ts';
import { makeLogger } from '../../runtime/host/log.ts';

export interface Call {
  readonly plugin: string;
  readonly env: Readonly<Record<string, string>>;
  readonly input: Record<string, unknown>;
}

export interface Setup {
  readonly root: string;
  readonly confDir: string;
  readonly binDir: string;
  readonly cacheDir: string;
  /** Writes a plugin whose body runs after the call was noted. */
  plugin(name: string, body: string): void;
  config(file: string, content: unknown): void;
  cni(options?: {
    binDirs?: readonly string[];
    confDirs?: readonly string[];
    deadlineMs?: number;
    addGraceMs?: number;
  }): ReturnType<typeof makeCni>;
  /** Calls in their order. */
  calls(): Call[];
}

export function setUp(t: TestContext): Setup {
  const root = mkdtempSync(join(tmpdir(), 'keelson-test-cni-'));
  t.after(() => rmSync(root, { recursive: true, force: true }));
  const [confDir, binDir, cacheDir, notes] = ['net.d', 'bin', 'cache', 'notes'].map((name) =>
    join(root, name),
  ) as [string, string, string, string];
  for (const folder of [confDir, binDir, notes]) mkdirSync(folder);
  return {
    root,
    confDir,
    binDir,
    cacheDir,
    plugin(name, body) {
      const path = join(binDir, name);
      writeFileSync(
        path,
        `#!/bin/sh
n=$(ls ${notes} | grep -c env$)
n=$(printf %04d "$n")
env > ${notes}/$n.${name}.$$.env
cat > ${notes}/$n.${name}.$$.in
${body}
`,
      );
      chmodSync(path, 0o755);
    },
    config(file, content) {
      writeFileSync(join(confDir, file), typeof content === 'string' ? content : JSON.stringify(content));
    },
    cni(options = {}) {
      const made = makeCni({
        confDirs: options.confDirs ?? [confDir],
        binDirs: options.binDirs ?? [binDir],
        cacheDir,
        log: makeLogger('silent'),
        deadlineMs: options.deadlineMs,
        addGraceMs: options.addGraceMs,
      });
      t.after(() => made.close());
      return made;
    },
    calls() {
      const names = readdirSync(notes).sort();
      return names
        .filter((name) => name.endsWith('.env'))
        .map((name) => {
          const text = readFileSync(join(notes, name), 'utf8');
          const env = Object.fromEntries(
            text.split('\n').flatMap((line) => {
              const at = line.indexOf('=');
              return at < 0 ? [] : [[line.slice(0, at), line.slice(at + 1)]];
            }),
          );
          const input = readFileSync(join(notes, name.replace(/env$/, 'in')), 'utf8');
          return { plugin: name.split('.')[1]!, env, input: input === '' ? {} : JSON.parse(input) };
        });
    },
  };
}

export function attachment(containerId: string, netns: string, capabilities = {}): Attachment {
  return {
    containerId,
    netns,
    ifName: 'eth0',
    args: { podName: 'web', podNamespace: 'shop', podUid: '11111111-2222-3333-4444-555555555555' },
    capabilities,
  };
}

/** What a plugin answers to ADD, in 1.0.0's form. */
export function answer(address: string): string {
  const result = {
    cniVersion: '1.0.0',
    interfaces: [{ name: 'eth0', sandbox: '/proc/self/ns/net' }],
    ips: [{ address, interface: 0 }],
    dns: {},
  };
  return `echo '${JSON.stringify(result)}'`;
}
