/** Paths in proc(5)'s /proc/[pid]/mountinfo. Pure. */

/** A path field as the path that it stands for: space, tab, newline and backslash are escaped there. */
export function unescapePath(field: string): string {
  return field.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)));
}

/** Mount points (field 5) in the order in which they were made. */
export function mountPoints(mountinfo: string): string[] {
  return mountinfo
    .split('\n')
    .map((line) => line.split(' ', 5)[4])
    .filter((field) => field !== undefined)
    .map((field) => unescapePath(field.replace(/\/\/deleted$/, '')));
}
