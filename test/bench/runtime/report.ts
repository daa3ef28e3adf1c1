/** The table for people and the line for programs. */
import { round, spread } from '../statistics.ts';
import { type Floor, type FloorTimes, floors } from './floor.ts';
import { type Call, calls, type Times } from './pods.ts';

export interface PeerResult {
  readonly one: Times;
  readonly many: Times;
  /** Pods started per second in each round. */
  readonly podsPerSecond: readonly number[];
}

const median = (values: readonly number[]) => spread(values, 2).median;

const rpcs: Readonly<Record<Call, string>> = {
  pod_create: 'RunPodSandbox',
  container_create: 'CreateContainer',
  container_start: 'StartContainer',
  exec_sync: 'ExecSync',
  container_stop: 'StopContainer',
  container_remove: 'RemoveContainer',
  pod_stop: 'StopPodSandbox',
  pod_remove: 'RemovePodSandbox',
};

/** What runtimes share out differently between two calls: one makes the process at the first, one at the second. */
const together: Readonly<Record<string, readonly Call[]>> = {
  'pod up: RunPodSandbox, Create, Start': ['pod_create', 'container_create', 'container_start'],
  'container: Create and Start': ['container_create', 'container_start'],
  'container: Stop and Remove': ['container_stop', 'container_remove'],
  'sandbox: Stop and Remove': ['pod_stop', 'pod_remove'],
};

const sumOf = (times: Times, parts: readonly Call[]) =>
  round(
    parts.reduce((sum, part) => sum + median(times[part]), 0),
    1,
  );

/** Pure. The floor of a pod with one started container: the sum of the parts' medians, in ms. */
export function podFloor(times: FloorTimes): number {
  const parts: readonly Floor[] = ['runc_create_start', 'bridge_add', 'pin_namespaces', 'overlay_mount'];
  return round(
    parts.reduce((sum, part) => sum + median(times[part]), 0),
    1,
  );
}

/** Pure. What takes a pod from nothing to a started container: the sum of the calls' medians, in ms. */
export function podTime(times: Times): number {
  return sumOf(times, ['pod_create', 'container_create', 'container_start']);
}

/** Pure. Lines. */
export function table(peers: ReadonlyMap<string, PeerResult>, floor: FloorTimes, lanes: number): string[] {
  const names = [...peers.keys()];
  const lines: string[] = [];
  for (const [kind, title] of [
    ['one', 'one at a time'],
    ['many', `${lanes} at a time`],
  ] as const) {
    const heads = names.map((name) => name.padEnd(26)).join('');
    lines.push('', `${`ms, median (min to max), ${title}`.padEnd(44)}${heads}ratio`);
    for (const call of calls) {
      const cells = names.map((name) => {
        const { median, min, max } = spread(peers.get(name)![kind][call], 1);
        return `${median} (${min} to ${max})`.padEnd(26);
      });
      lines.push(
        `${`  ${rpcs[call]}`.padEnd(44)}${cells.join('')}${ratio(peers, (one) => median(one[kind][call]))}`,
      );
    }
    for (const [title, parts] of Object.entries(together)) {
      const sums = names.map((name) => String(sumOf(peers.get(name)![kind], parts)).padEnd(26));
      lines.push(
        `${`  ${title}`.padEnd(44)}${sums.join('')}${ratio(peers, (one) => sumOf(one[kind], parts))}`,
      );
    }
  }
  const cells = names.map((name) => String(spread(peers.get(name)!.podsPerSecond, 2).median).padEnd(26));
  lines.push(
    `${`  pods started per second, ${lanes} at a time`.padEnd(44)}${cells.join('')}${ratio(peers, (one) => median(one.podsPerSecond))}`,
  );
  lines.push('', 'floor, ms, median (min to max)');
  for (const part of floors) {
    const { median, min, max } = spread(floor[part], 1);
    lines.push(`  ${part.padEnd(42)}${median} (${min} to ${max})`);
  }
  const sum = podFloor(floor);
  lines.push(`  ${'sum for a pod with a started container'.padEnd(42)}${sum}`);
  for (const [name, { one }] of peers) {
    const took = podTime(one);
    lines.push(`  ${`${name}, the same`.padEnd(42)}${took}, ${round(took / sum, 2)} of the floor`);
  }
  return lines;
}

function ratio(peers: ReadonlyMap<string, PeerResult>, value: (one: PeerResult) => number): string {
  const [own, theirs] = [peers.get('keelson'), peers.get('containerd')];
  return own === undefined || theirs === undefined ? '' : String(round(value(own) / value(theirs), 2));
}

/** Pure. The last line. */
export function jsonLine(
  peers: ReadonlyMap<string, PeerResult>,
  floor: FloorTimes,
  more: Readonly<Record<string, unknown>>,
): string {
  const ofPeer = ({ one, many, podsPerSecond }: PeerResult) => ({
    ...Object.fromEntries(calls.map((call) => [`${call}_ms`, median(one[call])])),
    pods_per_s_at_8: median(podsPerSecond),
    at_8: Object.fromEntries(calls.map((call) => [`${call}_ms`, median(many[call])])),
    floor_ratio: round(podTime(one) / podFloor(floor), 2),
  });
  return JSON.stringify({
    bench: 'runtime',
    ...Object.fromEntries([...peers].map(([name, result]) => [name, ofPeer(result)])),
    floor: {
      ...Object.fromEntries(floors.map((part) => [`${part}_ms`, median(floor[part])])),
      sum_ms: podFloor(floor),
    },
    ...more,
  });
}
