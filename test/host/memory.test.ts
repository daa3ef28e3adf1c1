import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { cleanMappings, giveMemoryBack } from '../../runtime/host/memory.ts';

const mapping = (range: string, permissions: string, path: string, anonymous: number) =>
  `${range} ${permissions} 00000000 08:01 1234                           ${path}\nSize: 64 kB\nAnonymous:        ${anonymous} kB\nVmFlags: rd ex\n`;

test('only what stands in the file unchanged is dropped', () => {
  const smaps = [
    mapping('00400000-00500000', 'r--p', '/opt/node', 0),
    mapping('00500000-00900000', 'r-xp', '/opt/node', 0),
    mapping('00900000-00910000', 'r--p', '/opt/node', 12), // relocated, then made read-only
    mapping('00910000-00920000', 'rw-p', '/opt/node', 0),
    mapping('7f0000000000-7f0000010000', 'r-xp', '/lib/libc.so.6', 0),
    mapping('7f0000010000-7f0000020000', 'r--p', '', 0),
  ].join('');
  assert.deepEqual(cleanMappings(smaps, '/opt/node'), [
    { start: 0x400000n, length: 0x100000n },
    { start: 0x500000n, length: 0x400000n },
  ]);
});

test('giving memory back lowers what is mapped of the program, and the process goes on', async () => {
  const mapped = async () => {
    const text = await readFile('/proc/self/smaps_rollup', 'utf8');
    return Number(/^Rss:\s+(\d+)/m.exec(text)![1]);
  };
  const before = await mapped();
  await giveMemoryBack();
  assert.ok((await mapped()) < before);
  assert.equal(JSON.parse(JSON.stringify({ a: [1, 2, 3].map((x) => x * 2) })).a[2], 6);
});
