/**
 * `npm run test:critest`: the conformance suite of the container runtime interface against `keelson runtime`, on a
 * machine of its own inside this one, with stand-ins for the suite's images. Ends with the suite's own summary, what
 * was skipped and why, and `N passed, N failed, N skipped`. Exit code: critest's; 1 also where a spec is skipped that
 * nothing allows.
 *   --peer containerd   against Debian sid's containerd instead, to see that harness and images are right
 *   --focus PATTERN     only specs whose name matches (Ginkgo's regular expression)
 *   --handler crun      with crun as the runtime of all containers instead of runc
 *   --parallel N        that many specs at once
 *   --websocket         exec, attach and port-forward over WebSocket instead of SPDY
 *   --keep              do not remove the folder with configuration, log and report
 */

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { chmod, mkdir, mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { containerdPrograms } from '../peers/containerd.ts';
import { type CriTools, criTools } from '../peers/cri-tools.ts';
import { cacheFolder } from '../peers/go-programs.ts';
import { nginxFiles } from '../peers/nginx.ts';
import { startRegistry } from '../peers/registry.ts';
import { pushImages } from './images.ts';
import { runApart, settleApart } from './machine.ts';
import { describe, type GinkgoReport, judge } from './report.ts';
import { type Peer, peers, type ServedRuntime, startRuntime } from './runtimes.ts';
import { allowedSkips, machineFacts, unrunnable } from './skips.ts';

const usage = 'INVALID_ARGUMENT';
const reportFile = 'report.json';
const outOfFocus = { name: '', reason: undefined, count: Infinity, because: '--focus is for others' };

const { values } = parseArgs({
  options: {
    peer: { type: 'string', default: 'keelson' },
    focus: { type: 'string' },
    handler: { type: 'string' },
    parallel: { type: 'string', default: '1' },
    websocket: { type: 'boolean', default: false },
    keep: { type: 'boolean', default: false },
    // Set by the run itself: the folder that it has made, in the machine that it has made.
    inside: { type: 'string' },
  },
});
if (!peers.includes(values.peer as Peer))
  throw new KeelsonError(usage, `--peer ${values.peer}: not one of ${peers}`);
if (values.handler !== undefined && (values.handler !== 'crun' || values.peer !== 'keelson'))
  throw new KeelsonError(usage, `--handler ${values.handler}: only crun, and only for keelson`);
if (!/^[1-9]\d?$/.test(values.parallel))
  throw new KeelsonError(usage, `--parallel ${values.parallel}: not a number`);

const found = await criTools();
if ('missing' in found) throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
process.exitCode = await (values.inside === undefined ? outside() : inside(found, values.inside));

/** Downloads what needs a network, makes the machine, and takes it away again. */
async function outside(): Promise<number> {
  const ending = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => ending.abort());
  await nginxFiles(ending.signal);
  if (values.peer === 'containerd') await containerdPrograms(cacheFolder(), ending.signal);
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-critest-'));
  try {
    const again = [process.execPath, fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    return await runApart(basename(folder), [...again, '--inside', folder], ending.signal);
  } finally {
    if (values.keep) console.log(`kept: ${folder}`);
    else await removeTree(folder);
  }
}

async function inside(tools: CriTools, folder: string): Promise<number> {
  const { signal } = new AbortController();
  await settleApart();
  if (values.handler === 'crun') await leaveHybrid(signal);
  // Users of pods walk to their files below it.
  await chmod(folder, 0o711);
  await mkdir(join(folder, 'tmp'));
  // Of everything from here on: it goes with the folder.
  process.env['TMPDIR'] = join(folder, 'tmp');
  const registry = await startRegistry();
  try {
    return await validate(tools, folder, registry.host, signal);
  } finally {
    await registry.close();
  }
}

/** crun refuses machines with both kinds of cgroups: this one is ours, and need not have the newer kind. */
async function leaveHybrid(signal: AbortSignal): Promise<void> {
  if (!existsSync('/sys/fs/cgroup/unified')) return;
  await exec('umount', ['/sys/fs/cgroup/unified'], { deadlineMs: 5000, signal });
}

async function validate(
  tools: CriTools,
  folder: string,
  registry: string,
  signal: AbortSignal,
): Promise<number> {
  const names = await pushImages(registry, tools, signal);
  console.log(`critest ${tools.version} on ${values.peer}, with ${names.length} stand-in images`);
  const place = { folder, registry, crictl: tools.crictl, signal, handler: values.handler };
  const runtime = await startRuntime(values.peer as Peer, place);
  const code = await critest(tools, runtime, folder);
  const allowed = [
    ...allowedSkips(await machineFacts(signal, values.handler)),
    ...(values.focus === undefined ? [] : [outOfFocus]),
  ];
  const verdict = judge(await reports(folder), allowed);
  if (verdict.failed.length > 0)
    console.log(`the end of the runtime's log:\n${await runtime.daemon.tail(8000)}`);
  await runtime.daemon.stop();
  console.log(describe(verdict, allowed).join('\n'));
  const ran = verdict.passed.length + verdict.failed.length > 0;
  return code !== 0 ? code : verdict.failed.length > 0 || verdict.unexpected.length > 0 || !ran ? 1 : 0;
}

/** Runs the suite with its output on ours; its exit code. */
async function critest(tools: CriTools, runtime: ServedRuntime, folder: string): Promise<number> {
  const args = [
    `-runtime-endpoint=unix://${runtime.socket}`,
    `-config=${join(folder, 'no-crictl.yaml')}`,
    ...(values.handler === undefined ? [] : [`-runtime-handler=${values.handler}`]),
    // Ginkgo takes a 1 for a mistake.
    ...(values.parallel === '1' ? [] : [`-parallel=${values.parallel}`]),
    `-ginkgo.skip=${unrunnable}`,
    `-ginkgo.json-report=${join(folder, reportFile)}`,
    '-ginkgo.no-color',
    // One that hangs must not take all the time of the others.
    '-ginkgo.timeout=30m',
    ...(values.focus === undefined ? [] : [`-ginkgo.focus=${values.focus}`]),
    ...(values.websocket ? ['exec', 'attach', 'portforward'].map((what) => `-websocket-${what}`) : []),
  ];
  const child = spawn(tools.critest, args, {
    cwd: folder,
    stdio: ['ignore', 'inherit', 'inherit'],
    // critest starts its runner for parallel specs from the PATH.
    env: { ...process.env, PATH: `${dirname(tools.ginkgo)}:${process.env['PATH']}` },
  });
  const [code] = (await once(child, 'exit')) as [number | null];
  return code ?? 1;
}

async function reports(folder: string): Promise<GinkgoReport[]> {
  return JSON.parse(await readFile(join(folder, reportFile), 'utf8')) as GinkgoReport[];
}
