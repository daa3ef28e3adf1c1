/** Writes tar archives byte by byte, so that tests can also write ones that no sane program would. */
import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';

export interface TarEntry {
  readonly path: string;
  /** Default: file. */
  readonly type?: 'file' | 'directory' | 'symlink' | 'link' | 'fifo' | 'char' | 'block';
  readonly content?: string | Buffer;
  /** Of a symlink or hard link. */
  readonly target?: string;
  readonly mode?: number;
  readonly uid?: number;
  readonly gid?: number;
  /** Seconds; fractions are written as a pax header. Default 1,700,000,000. */
  readonly mtime?: number | string;
  readonly major?: number;
  readonly minor?: number;
  readonly xattrs?: Readonly<Record<string, string | Buffer>>;
  /** Further pax records, as they are. */
  readonly pax?: Readonly<Record<string, string>>;
  /** Take content (or, for a folder, everything below it), mode and link targets from this path of the machine. */
  readonly fromHost?: string;
  /** The size that the header claims, where it must be a lie. */
  readonly claimedSize?: number;
}

const typeFlags = { file: '0', link: '1', symlink: '2', char: '3', block: '4', directory: '5', fifo: '6' };

/** The archive of `entries`, in their order, with the end marker. */
export function makeTar(entries: readonly TarEntry[]): Buffer {
  const parts = entries.flatMap(expand).flatMap(encode);
  return Buffer.concat([...parts, Buffer.alloc(1024)]);
}

function expand(entry: TarEntry): TarEntry[] {
  const { fromHost, ...rest } = entry;
  if (fromHost === undefined) return [entry];
  const stat = lstatSync(fromHost);
  const mode = stat.mode & 0o7777;
  if (stat.isSymbolicLink()) return [{ type: 'symlink', target: readlinkSync(fromHost), mode, ...rest }];
  if (!stat.isDirectory()) return [{ mode, content: readFileSync(fromHost), ...rest }];
  const below = readdirSync(fromHost, { withFileTypes: true })
    .filter((child) => child.isFile() || child.isDirectory() || child.isSymbolicLink())
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  return [
    { type: 'directory', mode, ...rest },
    ...below.flatMap((child) =>
      expand({ path: `${entry.path}/${child.name}`, fromHost: join(fromHost, child.name) }),
    ),
  ];
}

function encode(entry: TarEntry): Buffer[] {
  const { type = 'file', mtime = 1_700_000_000 } = entry;
  const content = Buffer.from(entry.content ?? '');
  const size = entry.claimedSize ?? content.length;
  const records: [string, string | Buffer][] = Object.entries(entry.pax ?? {});
  for (const [name, value] of Object.entries(entry.xattrs ?? {}))
    records.push([`SCHILY.xattr.${name}`, value]);
  if (Buffer.byteLength(entry.path) > 100) records.push(['path', entry.path]);
  if (Buffer.byteLength(entry.target ?? '') > 100) records.push(['linkpath', entry.target!]);
  if (!Number.isInteger(mtime)) records.push(['mtime', String(mtime)]);
  const parts: Buffer[] = [];
  if (records.length > 0) {
    const body = Buffer.concat(records.map(([key, value]) => paxRecord(key, value)));
    parts.push(header({ path: 'pax' }, 'x', body.length), padded(body));
  }
  parts.push(header(entry, typeFlags[type], size), padded(content));
  return parts;
}

function header(entry: TarEntry, flag: string, size: number): Buffer {
  const block = Buffer.alloc(512);
  const octal = (value: number, at: number, width: number) => {
    block.write(
      `${value
        .toString(8)
        .padStart(width - 1, '0')
        .slice(0, width - 1)}\0`,
      at,
      'latin1',
    );
  };
  block.write(entry.path, 0, 100);
  octal(entry.mode ?? (entry.type === 'directory' ? 0o755 : 0o644), 100, 8);
  octal(entry.uid ?? 0, 108, 8);
  octal(entry.gid ?? 0, 116, 8);
  octal(size, 124, 12);
  octal(Math.max(0, Math.floor(Number(entry.mtime ?? 1_700_000_000))), 136, 12);
  block.write('        ', 148);
  block.write(flag, 156);
  block.write(entry.target ?? '', 157, 100);
  block.write('ustar\x0000', 257, 'latin1');
  octal(entry.major ?? 0, 329, 8);
  octal(entry.minor ?? 0, 337, 8);
  let sum = 0;
  for (const byte of block) sum += byte;
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  return block;
}

/** `LENGTH key=value\n`, where LENGTH counts itself. */
function paxRecord(key: string, value: string | Buffer): Buffer {
  const rest = Buffer.concat([Buffer.from(` ${key}=`), Buffer.from(value), Buffer.from('\n')]);
  let length = rest.length;
  while (length !== rest.length + String(length).length) length = rest.length + String(length).length;
  return Buffer.concat([Buffer.from(String(length)), rest]);
}

function padded(content: Buffer): Buffer {
  const over = content.length % 512;
  return over === 0 ? content : Buffer.concat([content, Buffer.alloc(512 - over)]);
}
