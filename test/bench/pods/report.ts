/** Figures of pods on one node and of two nodes beside each other, as text and as one line. */
import { round, type Spread, spread } from '../statistics.ts';
import type { Peer } from './place.ts';

/** Samples in milliseconds: of single pods, and of whole bursts. */
export interface Times {
  readonly one: number[];
  readonly burst30: number[];
  readonly burst110: number[];
  readonly deleteOne: number[];
  readonly delete30: number[];
  readonly delete110: number[];
  /** Processor time of the node for one pod of the largest burst, made and deleted. */
  readonly cpu: number[];
  /** The daemons' own part of it. */
  readonly daemons: number[];
}

export const noTimes = (): Times => ({
  one: [],
  burst30: [],
  burst110: [],
  deleteOne: [],
  delete30: [],
  delete110: [],
  cpu: [],
  daemons: [],
});

const titles: Readonly<Record<keyof Times, string>> = {
  one: 'create to Running, one at a time',
  burst30: '30 at once, all Running',
  burst110: '110 at once, all Running',
  deleteOne: 'delete to gone, one at a time',
  delete30: '30 at once, all gone',
  delete110: '110 at once, all gone',
  cpu: 'processor time for one pod of 110',
  daemons: '  of the daemons themselves',
};

export interface Memory {
  readonly daemons: number;
  readonly monitors: readonly number[];
}

export interface PeerResult {
  readonly times: Times;
  readonly requests: ReadonlyMap<string, number>;
  /** Pods that were made and deleted. */
  readonly pods: number;
  readonly memory: { readonly none: Memory; readonly many: Memory };
}

export const totalOf = ({ daemons, monitors }: Memory) =>
  round(daemons + monitors.reduce((sum, one) => sum + one, 0), 1);

const perPod = ({ requests, pods }: PeerResult) =>
  round([...requests.values()].reduce((sum, one) => sum + one, 0) / pods, 2);

/** Pure. */
export function table(results: ReadonlyMap<Peer, PeerResult>): string[] {
  const all = [...results];
  const row = (title: string, cells: readonly string[]) =>
    title.padEnd(38) + cells.map((cell) => cell.padEnd(28)).join('');
  const lines = [
    row(
      'ms, median (min to max)',
      all.map(([name]) => name),
    ),
  ];
  for (const kind of Object.keys(titles) as (keyof Times)[]) {
    const spreads = all.map(([, { times }]) =>
      spread(times[kind], kind === 'cpu' || kind === 'daemons' ? 1 : 0),
    );
    const cells = spreads.map(({ median, min, max }) => `${median} (${min} to ${max})`);
    const [own, theirs] = spreads;
    if (theirs !== undefined) cells.push(`ratio ${ratio(own!.median, theirs.median)}`);
    lines.push(row(titles[kind], cells));
  }
  const memory = (what: 'none' | 'many') => all.map(([, result]) => describe(result.memory[what]));
  lines.push(row('MiB (PSS) at 0 pods', memory('none')), row('MiB (PSS) at 30 pods', memory('many')));
  lines.push('requests to the apiserver for one pod, made and deleted');
  for (const [name, result] of all) {
    const kinds = [...result.requests]
      .sort(([, a], [, b]) => b - a)
      .map(([kind, count]) => `${kind} ${round(count / result.pods, 2)}`);
    lines.push(row(`  ${name}`, [`${perPod(result)}: ${kinds.join(', ')}`]));
  }
  return lines;
}

const describe = (memory: Memory) =>
  `${totalOf(memory)} (daemons ${round(memory.daemons, 1)}, ${memory.monitors.length} monitors)`;

const ratio = (own: number, theirs: number) => round(own / theirs, 3);

/** Pure. The last line of two nodes beside each other. */
export function besideLine(own: PeerResult, theirs: PeerResult, more: object): string {
  const beside = (value: (one: PeerResult) => number) => ({
    keelson_ms: value(own),
    kubelet_ms: value(theirs),
    ratio: ratio(value(own), value(theirs)),
  });
  const times = (kind: keyof Times) => beside((one) => spread(one.times[kind], 1).median);
  return JSON.stringify({
    bench: 'pods-vs-kubelet',
    one: times('one'),
    burst30: times('burst30'),
    burst110: times('burst110'),
    delete: { ...times('deleteOne'), burst30: times('delete30'), burst110: times('delete110') },
    requests_per_pod: { keelson: perPod(own), kubelet: perPod(theirs) },
    cpu_per_pod: { ...times('cpu'), daemons: times('daemons') },
    pss_mib: {
      keelson: { pods0: totalOf(own.memory.none), pods30: totalOf(own.memory.many) },
      kubelet: { pods0: totalOf(theirs.memory.none), pods30: totalOf(theirs.memory.many) },
    },
    ...more,
  });
}

/** Pure. The last line of one node alone. */
export function aloneLine(peer: Peer, result: PeerResult, more: object): string {
  const of = (kind: keyof Times): Spread => spread(result.times[kind], 1);
  return JSON.stringify({
    bench: 'pods',
    peer,
    one_ms: of('one'),
    burst30_ms: of('burst30').median,
    burst110_ms: of('burst110').median,
    delete: {
      one_ms: of('deleteOne'),
      burst30_ms: of('delete30').median,
      burst110_ms: of('delete110').median,
    },
    requests_per_pod: perPod(result),
    cpu_ms_per_pod: { all: of('cpu').median, daemons: of('daemons').median },
    pss_mib: { pods0: totalOf(result.memory.none), pods30: totalOf(result.memory.many) },
    ...more,
  });
}
