/** Texts as people read them: sizes, ids, tables. Pure. */

const units = ['B', 'kB', 'MB', 'GB', 'TB', 'PB'];

/** `0 B`, `999 B`, `1.0 kB`, `45.6 MB`, `123 MB`: powers of 1000, as registries and disks are sold. */
export function formatBytes(bytes: number): string {
  let value = Math.max(0, bytes);
  let unit = 0;
  while (unit < units.length - 1 && (unit === 0 ? value >= 1000 : Math.round(value) >= 1000)) {
    value /= 1000;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${value.toFixed(digits)} ${units[unit]}`;
}

/** The first twelve digits of a digest. */
export function shortId(digest: string): string {
  return digest.replace(/^[a-z0-9+._-]+:/, '').slice(0, 12);
}

/** `0s`, `59s`, `3m`, `23h`, `400d`: the largest unit alone, as people ask how long ago. */
export function formatAge(ms: number): string {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)}h`;
  return `${Math.floor(seconds / 86_400)}d`;
}

/** JSON that steers no terminal: what JSON leaves of control characters is escaped, too. */
export function printJson(value: unknown, indent?: number): string {
  return JSON.stringify(value, undefined, indent).replace(
    /[\x7f-\x9f]/g,
    (character) => `\\u00${character.charCodeAt(0).toString(16)}`,
  );
}

/** One line of what others wrote (a registry, say), which must not steer the terminal: control characters become `?`. */
export function printable(text: string): string {
  return text.replace(/[\t\r\n]+/g, ' ').replace(/[\x00-\x1f\x7f-\x9f]/g, '?');
}

/** Columns aligned, two spaces apart, nothing after the last cell. */
export function formatTable(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const all = [head, ...rows].map((row) => row.map(printable));
  const widths = head.map((_, column) => Math.max(...all.map((row) => row[column]!.length)));
  return all
    .map((row) =>
      row
        .map((cell, column) => cell.padEnd(widths[column]!))
        .join('  ')
        .trimEnd(),
    )
    .map((line) => `${line}\n`)
    .join('');
}
