/** The import rules of ARCHITECTURE.md: who may know whom. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

const root = resolve(dirname(fileURLToPath(import.meta.url)), '..');

/** For each room: the path prefixes that its files may import, besides itself. First match wins. */
const rules: readonly { room: string; may: readonly string[] }[] = [
  { room: 'runtime/host/', may: [] },
  { room: 'images/', may: ['runtime/host/', 'runtime/api.ts'] },
  { room: 'cni/', may: ['runtime/host/'] },
  { room: 'runtime/', may: ['runtime/host/', 'images/', 'cni/'] },
  // Where everything is put together.
  { room: 'agent/main.ts', may: ['agent/', 'runtime/', 'images/', 'cni/'] },
  { room: 'agent/main/', may: ['agent/', 'runtime/', 'images/', 'cni/'] },
  {
    room: 'agent/',
    may: [
      'package.json',
      'runtime/host/',
      'runtime/api.ts',
      'runtime/streaming/types.ts',
      'runtime/streaming/session.ts',
      'runtime/streaming/client/',
      'runtime/cri/client.ts',
    ],
  },
];

function sources(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && /\.(ts|mts|js|mjs)$/.test(entry.name))
    .map((entry) => relative(root, join(entry.parentPath, entry.name)));
}

/** Relative imports of a file, as paths below the root. */
function importsOf(file: string): string[] {
  const text = readFileSync(join(root, file), 'utf8');
  const found = text.matchAll(
    /(?:\bfrom\s+|\bimport\s*\(\s*|\bimport\s+|new URL\(\s*)['"](\.{1,2}\/[^'"]+)['"]/g,
  );
  return [...found].map((match) => relative(root, resolve(root, dirname(file), match[1]!)));
}

test('every room imports only what it may', () => {
  const broken: string[] = [];
  let checked = 0;
  for (const folder of ['runtime', 'images', 'cni', 'agent']) {
    for (const file of sources(folder)) {
      const rule = rules.find(({ room }) => file.startsWith(room));
      assert.ok(rule, `${file} is in no room`);
      for (const target of importsOf(file)) {
        checked++;
        if (!target.startsWith(rule.room) && !rule.may.some((prefix) => target.startsWith(prefix))) {
          broken.push(`${file} must not import ${target}`);
        }
      }
    }
  }
  assert.deepEqual(broken, []);
  assert.ok(checked > 20, `only ${checked} imports seen`);
});

test('a folder has at most about ten files', () => {
  const counts = new Map<string, number>();
  for (const folder of ['runtime', 'images', 'cni', 'agent']) {
    for (const file of sources(folder)) counts.set(dirname(file), (counts.get(dirname(file)) ?? 0) + 1);
  }
  assert.deepEqual(
    [...counts].filter(([, count]) => count > 13),
    [],
  );
});

test('no file is named for a heap of things', () => {
  const named = ['runtime', 'images', 'cni', 'agent']
    .flatMap(sources)
    .filter((file) => /(^|\/)(utils?|helpers?|common|misc)(\/|\.)/.test(file));
  assert.deepEqual(named, []);
});
