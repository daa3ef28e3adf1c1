/** Processes on the host that outlive the agent: known by pid and start time, because pids are used again. */
import { readdirSync, readFileSync } from 'node:fs';
import { constants as osConstants } from 'node:os';

export interface ProcessIdentity {
  readonly pid: number;
  /** Clock ticks after boot (proc(5), stat field 22), as text. */
  readonly start: string;
}

/** Who has `pid` now; undefined where nobody has, or only a zombie. */
export function identify(pid: number): ProcessIdentity | undefined {
  let stat: string;
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  } catch {
    return undefined;
  }
  // The second field is the name in brackets and may hold anything; the rest starts after its last bracket.
  const rest = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const start = rest[19];
  if (start === undefined || rest[0] === 'Z' || rest[0] === 'X') return undefined;
  return { pid, start };
}

/** Does this very process still run? */
export function isAlive(identity: ProcessIdentity): boolean {
  return identify(identity.pid)?.start === identity.start;
}

/** Sends `signal`; false where the process is gone or has no such pid any more. */
export function signalProcess(identity: ProcessIdentity, signal: NodeJS.Signals | number): boolean {
  if (!isAlive(identity)) return false;
  try {
    return process.kill(identity.pid, signal);
  } catch {
    return false;
  }
}

/** The arguments of `pid`; an empty list where it is gone. */
export function argumentsOf(pid: number): string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0').slice(0, -1);
  } catch {
    return [];
  }
}

/** The children of `pid`, zombies too; an empty list where it is gone. */
export function childrenOf(pid: number): number[] {
  try {
    return readFileSync(`/proc/${pid}/task/${pid}/children`, 'latin1').split(' ').slice(0, -1).map(Number);
  } catch {
    return [];
  }
}

/** The pid in the file that conmon or runc wrote; undefined where there is none. */
export function readPidFile(path: string): number | undefined {
  try {
    const pid = Number(readFileSync(path, 'latin1').trim());
    return Number.isSafeInteger(pid) && pid > 1 ? pid : undefined;
  } catch {
    return undefined;
  }
}

/** All pids in /proc. */
export function allProcesses(): number[] {
  return readdirSync('/proc').map(Number).filter(Number.isInteger);
}

/** `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` → number; undefined for what is none. Pure. */
export function signalNumber(name: string): number | undefined {
  if (/^\d{1,2}$/.test(name)) {
    const number = Number(name);
    return number >= 1 && number <= 64 ? number : undefined;
  }
  // The CRI and Kubernetes spell SIGRTMIN+3 as SIGRTMINPLUS3.
  const plain = name.toUpperCase().replace(/^SIG/, '').replace('PLUS', '+').replace('MINUS', '-');
  const realTime = /^RT(MIN|MAX)(?:([+-])(\d{1,2}))?$/.exec(plain);
  if (realTime !== null) {
    const [, base, sign = '+', offset = '0'] = realTime;
    const number = (base === 'MIN' ? 34 : 64) + Number(`${sign}${offset}`);
    return number >= 34 && number <= 64 ? number : undefined;
  }
  const numbers: Readonly<Record<string, number>> = osConstants.signals;
  return Object.hasOwn(numbers, `SIG${plain}`) ? numbers[`SIG${plain}`] : undefined;
}
