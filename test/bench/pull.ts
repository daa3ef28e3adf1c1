/**
 * `npm run bench:pull`: how long keelson, containerd, Podman and a shell pipe take to pull the same image of 7 layers
 * from a registry on loopback into an empty store, what CPU time they use and how much memory. In turn in one run, each
 * time on a fresh ext4; one warm-up, then the counted rounds. The last line is one JSON object.
 *   --rounds N          counted rounds (default 5)
 *   --only A,B          of keelson, containerd, podman, floor (default all)
 *   --kind gzip|zstd    only one compression
 *   --no-warm-up        straight to the counted rounds
 */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { exec } from '../../runtime/host/exec.ts';
import { removeTree } from '../../runtime/host/files.ts';
import { containerdPrograms } from '../peers/containerd.ts';
import { cacheFolder } from '../peers/go-programs.ts';
import { startRegistry } from '../peers/registry.ts';
import { freshDisk } from './pull/disk.ts';
import { type BenchImage, benchImage, type Kind, kinds } from './pull/image.ts';
import { startMeter } from './pull/meter.ts';
import { containerd, floor, keelson, type Measured, type Puller, podman } from './pull/peers.ts';
import { round, type Spread, spread } from './statistics.ts';

const repository = 'bench/pull';
const names = ['keelson', 'containerd', 'podman', 'floor'] as const;
type Name = (typeof names)[number];
type Results = Map<Name, Measured[]>;

interface Options {
  readonly rounds: number;
  readonly only: readonly Name[];
  readonly kinds: readonly Kind[];
  readonly warmUp: boolean;
}

function readOptions(): Options {
  const { values } = parseArgs({
    options: {
      rounds: { type: 'string', default: '5' },
      only: { type: 'string', default: names.join(',') },
      kind: { type: 'string' },
      'no-warm-up': { type: 'boolean', default: false },
    },
  });
  const rounds = Number(values.rounds);
  const only = values.only.split(',') as Name[];
  const chosen = values.kind === undefined ? kinds : ([values.kind] as Kind[]);
  if (!Number.isInteger(rounds) || rounds < 1) throw new Error(`--rounds ${values.rounds} is not a number`);
  for (const name of only) if (!names.includes(name)) throw new Error(`--only ${name}: not one of ${names}`);
  for (const kind of chosen)
    if (!kinds.includes(kind)) throw new Error(`--kind ${kind}: not one of ${kinds}`);
  return {
    rounds,
    only: names.filter((name) => only.includes(name)),
    kinds: chosen,
    warmUp: !values['no-warm-up'],
  };
}

type Undo = (step: () => Promise<unknown>) => void;

async function bench(options: Options, undo: Undo, signal: AbortSignal): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-bench-pull-'));
  undo(() => removeTree(folder));
  const image = await benchImage(signal);
  const programs = options.only.includes('containerd')
    ? await containerdPrograms(cacheFolder(), signal)
    : undefined;
  const pullers: Record<Name, Puller> = {
    keelson,
    containerd:
      programs === undefined ? () => Promise.reject(new Error('no containerd')) : containerd(programs),
    podman,
    floor,
  };
  const registry = await startRegistry();
  undo(() => registry.close());
  for (const kind of options.kinds) {
    const target = `docker://${registry.host}/${repository}:${kind}`;
    const copy = ['copy', '-q', '--dest-tls-verify=false', `oci:${image.layout}:${kind}`, target];
    await exec('skopeo', copy, { deadlineMs: 300_000, signal });
  }
  await introduce(image, options, programs?.version);

  const id = await configDigest(registry.host, options.kinds[0]!);
  const results = new Map<Kind, Results>();
  for (const kind of options.kinds) {
    const measured: Results = new Map(options.only.map((name) => [name, []]));
    results.set(kind, measured);
    for (let turn = options.warmUp ? 0 : 1; turn <= options.rounds; turn++) {
      const first = turn % options.only.length;
      for (const name of [...options.only.slice(first), ...options.only.slice(0, first)]) {
        const result = await pullOnce(pullers[name], {
          parent: folder,
          kind,
          image: `${registry.host}/${repository}:${kind}`,
          id,
          layers: image.layers[kind].map((path) => layerUrl(registry.host, path)),
          signal,
        });
        if (turn > 0) measured.get(name)!.push(result);
        const count = turn === 0 ? 'warm-up' : `round ${turn}`;
        console.log(`${kind} ${count.padEnd(8)} ${name.padEnd(10)} ${describe(result)}`);
      }
    }
  }
  report(results);
}

const layerUrl = (host: string, path: string) =>
  `http://${host}/v2/${repository}/blobs/sha256:${path.slice(path.lastIndexOf('/') + 1)}`;

async function configDigest(host: string, kind: Kind): Promise<string> {
  const response = await fetch(`http://${host}/v2/${repository}/manifests/${kind}`, {
    headers: { accept: 'application/vnd.oci.image.manifest.v1+json' },
  });
  return ((await response.json()) as { config: { digest: string } }).config.digest;
}

/** One pull, with a file system, a cgroup and a scratch folder of its own, all gone afterwards. */
async function pullOnce(
  puller: Puller,
  what: {
    readonly parent: string;
    readonly kind: Kind;
    readonly image: string;
    readonly id: string;
    readonly layers: readonly string[];
    readonly signal: AbortSignal;
  },
): Promise<Measured> {
  const { parent, signal } = what;
  const scratch = join(parent, 'scratch');
  const undo: (() => Promise<unknown>)[] = [];
  try {
    await mkdir(scratch);
    undo.push(() => removeTree(scratch));
    const disk = await freshDisk(parent, 'disk', signal);
    undo.push(() => disk.close());
    const meter = await startMeter(`keelson-test-bench-${process.pid}`);
    undo.push(() => meter.close());
    return await puller({ ...what, folder: disk.folder, scratch, meter });
  } finally {
    for (const step of undo.reverse()) await step();
  }
}

async function introduce(image: BenchImage, options: Options, containerdVersion?: string): Promise<void> {
  const sum = (key: 'bytes' | 'entries' | 'files') =>
    image.contents.reduce((total, layer) => total + layer[key], 0);
  console.log(
    `${image.contents.length} layers, ${round(sum('bytes') / 1e6)} MB, ${sum('files')} files, ${sum('entries')} entries`,
  );
  for (const { name, bytes, files } of image.contents) {
    console.log(`  ${name.padEnd(14)} ${round(bytes / 1e6, 1)} MB, ${files} files`);
  }
  const versions = [`Node.js ${process.versions.node}`];
  if (containerdVersion !== undefined) versions.push(`containerd ${containerdVersion}`);
  if (options.only.includes('podman')) {
    const { stdout } = await exec('podman', ['--version'], { deadlineMs: 10_000 });
    versions.push(stdout.toString('utf8').trim());
  }
  const helpers = ['igzip', 'unpigz'].filter((name) =>
    (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, name))),
  );
  console.log(
    `${versions.join(', ')}; helpers that containerd would use for gzip: ${helpers.join(', ') || 'none'}`,
  );
}

function describe({ seconds, cpuSeconds, peakMib, mainBlockMs, mainBlockOwnMs }: Measured): string {
  const block =
    mainBlockMs === undefined
      ? ''
      : `, main thread blocked ${round(mainBlockMs)} ms (by itself ${round(mainBlockOwnMs!)})`;
  return `${seconds.toFixed(2)} s, CPU ${cpuSeconds.toFixed(2)} s, peak ${peakMib.toFixed(0)} MiB${block}`;
}

const over = (rounds: readonly Measured[], key: keyof Measured, digits: number): Spread =>
  spread(
    rounds.map((one) => one[key] ?? 0),
    digits,
  );

/** Median of keelson's seconds over those of `peer` in the same round; undefined where one of them did not run. */
function pairRatio(measured: Results, peer: Name): number | undefined {
  const [own, theirs] = [measured.get('keelson'), measured.get(peer)];
  if (own === undefined || theirs === undefined) return undefined;
  return spread(
    own.map(({ seconds }, turn) => seconds / theirs[turn]!.seconds),
    3,
  ).median;
}

/** The table, and the JSON line. */
function report(results: ReadonlyMap<Kind, Results>): void {
  const line: Record<string, unknown> = { bench: 'pull' };
  const heads = ['seconds', 'CPU seconds', 'peak MiB'].map((head) => head.padEnd(24));
  console.log(`\n${'median (least to greatest)'.padEnd(26)} ${heads.join('').trimEnd()}`);
  for (const [kind, measured] of results) {
    for (const [name, rounds] of measured) {
      const cell = ({ median, min, max }: Spread) => `${median} (${min} to ${max})`.padEnd(24);
      const cells = [
        over(rounds, 'seconds', 2),
        over(rounds, 'cpuSeconds', 2),
        over(rounds, 'peakMib', 0),
      ].map(cell);
      console.log(`${`${kind} ${name}`.padEnd(26)} ${cells.join('').trimEnd()}`);
    }
    const ratio = pairRatio(measured, 'containerd');
    if (ratio !== undefined) console.log(`${kind} keelson over containerd, pair by pair: ${ratio}`);
    const own = measured.get('keelson');
    const medians = (key: 'seconds' | 'cpuSeconds', suffix: string) =>
      Object.fromEntries(
        [...measured].map(([name, rounds]) => [`${name}${suffix}`, over(rounds, key, 2).median]),
      );
    line[kind] = {
      ...medians('seconds', '_s'),
      ratio,
      floor_ratio: pairRatio(measured, 'floor'),
      ...medians('cpuSeconds', '_cpu_s'),
      peak_mib: own && over(own, 'peakMib', 0).median,
      // The worst of all rounds: these are bounds, not costs.
      main_block_ms: own && over(own, 'mainBlockMs', 1).max,
      main_block_own_ms: own && over(own, 'mainBlockOwnMs', 1).max,
    };
  }
  console.log(JSON.stringify(line));
}

const steps: (() => Promise<unknown>)[] = [];
const interrupted = new AbortController();
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.on(signal, () => interrupted.abort(new Error(`ended by ${signal}`)));
}
try {
  await bench(readOptions(), (step) => steps.push(step), interrupted.signal);
} catch (error) {
  console.error(interrupted.signal.aborted ? String(interrupted.signal.reason) : error);
  process.exitCode = 1;
} finally {
  for (const step of steps.reverse()) await step().catch((error: unknown) => console.error(error));
}
