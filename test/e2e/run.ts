/**
 * `npm run test:e2e`: Kubernetes' own end-to-end suite, its specs of the node and of volumes, against a control plane and a
 * keelson node on a machine of their own inside this one, with stand-ins for the suite's images. Ends with what failed, what
 * was skipped and why, and `N passed, N failed, N skipped`. Nothing is run twice. Exit code: 1 where a spec failed, or was
 * skipped that nothing allows.
 *   --peer kubelet      against a stock kubelet and containerd instead, to see what the machine or a stand-in is to blame for
 *   --conformance       only what is called Conformance or NodeConformance
 *   --labels FILTER     only specs with these labels besides (Ginkgo's filter, as `!Slow`)
 *   --focus PATTERN     only specs whose name matches (Ginkgo's regular expression)
 *   --failed FILE       only specs that failed in a report of before
 *   --procs N           that many specs at once (default 4)
 *   --report FILE       where to put Ginkgo's report in JSON, with what each failed spec said
 *   --keep              do not remove the folder with configuration, logs and report
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createWriteStream } from 'node:fs';
import { copyFile, mkdir, mkdtemp, readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { parseArgs, promisify } from 'node:util';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { runApart, settleApart } from '../critest/machine.ts';
import { describe, type GinkgoReport, judge } from '../critest/report.ts';
import { machineFacts } from '../critest/skips.ts';
import { clusterPrograms } from '../peers/binaries.ts';
import { type E2ePrograms, e2ePrograms } from '../peers/e2e.ts';
import { startRegistry } from '../peers/registry.ts';
import { downloadForImages, pushImages } from './images.ts';
import { furnish, hasDummyLinks, lowersOomScores, type Peer, type Place, peers, setPlace } from './place.ts';
import { makeProgress } from './progress.ts';
import { allowedSkips, conformanceLabels, labels, unrunnableHere } from './specs.ts';

const reportFile = 'report.json';

const { values } = parseArgs({
  options: {
    peer: { type: 'string', default: 'keelson' },
    conformance: { type: 'boolean', default: false },
    labels: { type: 'string' },
    focus: { type: 'string' },
    failed: { type: 'string' },
    procs: { type: 'string', default: '4' },
    report: { type: 'string' },
    keep: { type: 'boolean', default: false },
    // Set by the run itself: the folder that it has made, in the machine that it has made.
    inside: { type: 'string' },
  },
});
if (!/^[1-9]\d?$/.test(values.procs)) {
  throw new KeelsonError('INVALID_ARGUMENT', `--procs ${values.procs}: not a number`);
}
if (!peers.includes(values.peer as Peer)) {
  throw new KeelsonError('INVALID_ARGUMENT', `--peer ${values.peer}: not one of ${peers}`);
}

const found = await e2ePrograms();
if ('missing' in found) throw new KeelsonError('DEPENDENCY_MISSING', found.missing);
process.exitCode = await (values.inside === undefined ? outside() : inside(found, values.inside));

/** Builds and downloads what is needed, makes the machine, and takes it away again. */
async function outside(): Promise<number> {
  const ending = new AbortController();
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => ending.abort());
  const cluster = await clusterPrograms();
  if ('missing' in cluster) throw new KeelsonError('DEPENDENCY_MISSING', cluster.missing);
  await downloadForImages(ending.signal);
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-e2e-'));
  try {
    const again = [process.execPath, fileURLToPath(import.meta.url), ...process.argv.slice(2)];
    const code = await runApart(basename(folder), [...again, '--inside', folder], ending.signal);
    if (values.report !== undefined)
      await copyFile(join(folder, reportFile), resolve(values.report)).catch(() => {});
    return code;
  } finally {
    if (values.keep) console.log(`kept: ${folder}`);
    else await removeTree(folder);
  }
}

async function inside(programs: E2ePrograms, folder: string): Promise<number> {
  const { signal } = new AbortController();
  await settleApart();
  await furnish(folder);
  // Of everything from here on: it goes with the folder.
  process.env['TMPDIR'] = join(folder, 'tmp');
  await mkdir(process.env['TMPDIR']);
  const registry = await startRegistry();
  let place: Place | undefined;
  try {
    const names = await pushImages(registry.host, programs, signal);
    place = await setPlace(values.peer as Peer, folder, registry.host);
    console.log(
      `Kubernetes ${programs.version} end to end on ${values.peer}, with ${names.length} stand-in images`,
    );
    return await validate(programs, place, folder);
  } finally {
    await place?.close();
    await registry.close();
  }
}

async function validate(programs: E2ePrograms, place: Place, folder: string): Promise<number> {
  const facts = {
    ...(await machineFacts(new AbortController().signal)),
    dummyLinks: await hasDummyLinks(),
    lowersOomScores: await lowersOomScores(),
  };
  const left = unrunnableHere(facts);
  const skip = left.map(({ name }) => name).join('|');
  const code = await runSuite(programs, place, folder, skip);
  const allowed = allowedSkips(facts);
  const verdict = judge(ran(await reports(join(folder, reportFile))), allowed);
  if (place.daemon.endedBy !== undefined) console.log(`the node's process ended: ${place.daemon.endedBy}`);
  for (const { name, because } of left) console.log(`not run: ${name}: ${because}`);
  console.log(describe(verdict, allowed).join('\n'));
  if (verdict.passed.length + verdict.failed.length === 0) return code === 0 ? 1 : code;
  return code !== 0 || verdict.failed.length > 0 || verdict.unexpected.length > 0 ? 1 : 0;
}

/** Runs the suite, with a line of ours for each spec that has ended and its own output in `suite.log`; its exit code. */
async function runSuite(programs: E2ePrograms, place: Place, folder: string, skip: string): Promise<number> {
  const filters = [
    values.conformance ? conformanceLabels : labels,
    ...(values.labels === undefined ? [] : [values.labels]),
  ];
  const args = [
    `--procs=${values.procs}`,
    '--no-color',
    '-v',
    `--output-dir=${folder}`,
    `--json-report=${reportFile}`,
    '--timeout=4h',
    `--label-filter=${filters.map((filter) => `(${filter})`).join(' && ')}`,
    `--skip=${skip}`,
    ...(await focus()).map((pattern) => `--focus=${pattern}`),
    programs.suite,
    '--',
    `--kubeconfig=${place.cluster.adminKubeconfig}`,
    `--kubectl-path=${place.cluster.kubectlProgram}`,
    '--provider=skeleton',
    '--num-nodes=1',
    `--container-runtime-endpoint=${place.runtimeEndpoint}`,
    `--report-dir=${folder}`,
  ];
  const child = spawn('unshare', [...apart(folder), programs.ginkgo, ...args], {
    cwd: join(folder, 'tmp'),
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, HOME: folder },
  });
  const ended = once(child, 'exit') as Promise<[number | null]>;
  const log = createWriteStream(join(folder, 'suite.log'));
  const progress = makeProgress(console.log);
  for await (const line of createInterface({ input: child.stdout, crlfDelay: Infinity })) {
    log.write(`${line}\n`);
    progress(line);
  }
  await promisify(log.end.bind(log))();
  return (await ended)[0] ?? 1;
}

/**
 * For unshare(1): where its user thinks itself on another machine than the node's, as it is meant to be. Specs clean up the
 * /tmp of where they run while others use the node's.
 */
function apart(folder: string): string[] {
  const own = join(folder, 'suite-tmp');
  const script = `mkdir -p '${own}/${basename(folder)}'
mount --bind '${folder}' '${own}/${basename(folder)}'
mount --rbind '${own}' /tmp
exec "$@"`;
  return ['--mount', '--propagation', 'private', 'sh', '-ec', script, 'sh'];
}

async function focus(): Promise<string[]> {
  const wanted = values.focus === undefined ? [] : [values.focus];
  if (values.failed === undefined) return wanted;
  const { failed } = judge(ran(await reports(values.failed)), []);
  return [...wanted, ...failed.map(({ name }) => `${RegExp.escape(name)}$`)];
}

async function reports(file: string): Promise<GinkgoReport[]> {
  return JSON.parse(await readFile(file, 'utf8')) as GinkgoReport[];
}

/** Without the specs that were not chosen: a spec that skips itself says why. */
function ran(all: readonly GinkgoReport[]): GinkgoReport[] {
  return all.map(({ SpecReports }) => ({
    SpecReports: SpecReports?.filter(
      ({ State, Failure }) => State !== 'skipped' || (Failure?.Message ?? '') !== '',
    ),
  }));
}
