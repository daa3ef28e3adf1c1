/** Finds in the kernel's log where the whole machine ran out of memory (kubelet's oomparser). Pure. */

export interface SystemOom {
  readonly process: string;
  readonly pid: number;
}

interface Begun {
  /** The group that had no memory left; `/` for the machine. */
  group: string;
}

/** Since Linux 5.0; without `oom_memcg` where the machine is meant, which the last line is enough for. */
const killed = /oom-kill:constraint=.*,oom_memcg=(.*),task_memcg=.*,task=(.*),pid=(\d+),uid=/;
/** Before. */
const legacy = /Task in .* killed as a result of limit of (.*)/;
const last = /Killed process (\d+) \((.+)\)/;

/** Takes the log line by line, and returns what a line completes. */
export function makeOomParser(): (line: string) => SystemOom | undefined {
  let begun: Begun | undefined;
  return (line) => {
    if (line.includes('invoked oom-killer:')) begun = { group: '/' };
    if (begun === undefined) return undefined;
    const whole = killed.exec(line);
    const end = whole ?? last.exec(line);
    if (end === null) {
      begun.group = legacy.exec(line)?.[1] ?? begun.group;
      return undefined;
    }
    const [group, process, pid] = whole ? [whole[1], whole[2], whole[3]] : [begun.group, end[2], end[1]];
    begun = undefined;
    return group === '/' ? { process: process!, pid: Number(pid) } : undefined;
  };
}

export function oomMessage({ process, pid }: SystemOom): string {
  return `System OOM encountered, victim process: ${process}, pid: ${pid}`;
}
