/** When the node is short of something: kubelet's hard eviction thresholds against what is measured. Pure. */
import { parseQuantity } from '../apiserver/quantity.ts';
import type { NodeFacts } from './facts.ts';

export interface Pressure {
  readonly memory: boolean;
  readonly disk: boolean;
  readonly pid: boolean;
}

/** When each was last seen, milliseconds of a monotonic clock. */
export type PressureSeen = Readonly<Partial<Record<keyof Pressure, number>>>;

interface Signal {
  readonly of: keyof Pressure;
  readonly available: number;
  /** 0: not measured. */
  readonly capacity: number;
}

/**
 * Pressure by the thresholds. What was under pressure stays so for `transitionMs` after it was last seen
 * (evictionPressureTransitionPeriod), so that the condition does not swing.
 */
export function assessPressure(
  facts: NodeFacts,
  thresholds: Readonly<Record<string, string>>,
  transitionMs: number,
  seen: PressureSeen,
  nowMs: number,
): { readonly pressure: Pressure; readonly seen: PressureSeen } {
  const now: Partial<Record<keyof Pressure, number>> = { ...seen };
  for (const [name, threshold] of Object.entries(thresholds)) {
    const signal = signalOf(facts, name);
    if (signal === undefined || signal.capacity === 0) continue;
    const least = thresholdValue(threshold, signal.capacity);
    if (least !== undefined && signal.available < least) now[signal.of] = nowMs;
  }
  const holds = (what: keyof Pressure) => {
    const at = now[what];
    return at !== undefined && (at === nowMs || nowMs - at < transitionMs);
  };
  return { pressure: { memory: holds('memory'), disk: holds('disk'), pid: holds('pid') }, seen: now };
}

/** `10%` of `capacity`, or a quantity; undefined where kubelet ignores it (0% and 100%) or it is neither. */
export function thresholdValue(text: string, capacity: number): number | undefined {
  const percent = /^(\d+(?:\.\d+)?)%$/.exec(text);
  if (percent !== null) {
    const share = Number(percent[1]);
    return share <= 0 || share >= 100 ? undefined : (capacity * share) / 100;
  }
  try {
    return parseQuantity(text);
  } catch {
    return undefined;
  }
}

function signalOf(facts: NodeFacts, name: string): Signal | undefined {
  const { nodefs, imagefs } = facts;
  switch (name) {
    case 'memory.available':
      return { of: 'memory', available: facts.memoryAvailableBytes, capacity: facts.memoryBytes };
    case 'nodefs.available':
      return { of: 'disk', available: nodefs.availableBytes, capacity: nodefs.capacityBytes };
    case 'nodefs.inodesFree':
      return { of: 'disk', available: nodefs.inodesFree, capacity: nodefs.inodes };
    case 'imagefs.available':
    case 'containerfs.available':
      return { of: 'disk', available: imagefs.availableBytes, capacity: imagefs.capacityBytes };
    case 'imagefs.inodesFree':
    case 'containerfs.inodesFree':
      return { of: 'disk', available: imagefs.inodesFree, capacity: imagefs.inodes };
    case 'pid.available':
      return { of: 'pid', available: facts.maxTasks - facts.tasks, capacity: facts.maxTasks };
    default:
      return undefined;
  }
}
