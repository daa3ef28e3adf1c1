/** Archives, mutated: only errors of ours, nothing outside, nothing left. The seed is printed to run a case again. */
import assert from 'node:assert/strict';
import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { gzipSync, zstdCompressSync } from 'node:zlib';
import { parseItems } from '../../images/archive/docker.ts';
import { decodeHeader } from '../../images/archive/tar_headers.ts';
import { cleanMember } from '../../images/archive/tar_index.ts';
import { isError } from '../../runtime/host/errors.ts';
import {
  dockerSaveNew,
  dockerSaveOld,
  type Files,
  namedLayout,
  tarOf,
  writeFolder,
} from '../peers/archive.ts';
import { buildImage } from '../peers/image.ts';
import { onDisk, openImages, temporaryFolder } from '../peers/image-store.ts';
import { mutate, randomFrom, withChecksums } from '../peers/mutations.ts';
import { makeTar } from '../peers/tar.ts';

const seed = Number(process.env['KEELSON_FUZZ_SEED'] ?? 1);
const skip = process.getuid?.() === 0 ? false : 'needs root';
const image = buildImage({
  layers: [{ files: [{ path: 'a', content: 'a' }] }, { files: [{ path: 'b' }], compression: 'none' }],
});
const named = [{ image, tags: ['docker.io/library/app:1'] }];

test(`fuzz of headers, names and manifest.json, seed ${seed}`, () => {
  const random = randomFrom(seed);
  const tar = makeTar(dockerSaveOld(named));
  const items = Buffer.from('[{"Config":"c.json","RepoTags":["a:1"],"Layers":["x/layer.tar","y"]}]');
  let accepted = 0;
  for (let round = 0; round < 5000; round++) {
    const at = random(tar.length / 512) * 512;
    const padded = Buffer.concat([mutate(tar.subarray(at, at + 512), random), Buffer.alloc(512)]);
    try {
      const header = decodeHeader(withChecksums(padded.subarray(0, 512)));
      if (header !== undefined) assert.ok(Number.isSafeInteger(header.size) && header.size >= 0);
      for (const { config } of parseItems(mutate(items, random), 'fuzz')) {
        const name = cleanMember(config);
        assert.ok(name === undefined || !name.split('/').includes('..'));
      }
      accepted++;
    } catch (error) {
      assert.ok(isError(error, 'IMAGE_INVALID'), `seed ${seed}, round ${round}: ${(error as Error).stack}`);
    }
  }
  assert.ok(accepted > 0, 'some mutations are still valid');
});

test(`fuzz of imports, seed ${seed}`, { skip }, async (t) => {
  const random = randomFrom(seed);
  const folder = temporaryFolder(t);
  const store = await openImages(t, { limits: { entries: 1000, bytes: 16 << 20 } });
  const machine = readdirSync('/').sort();
  const path = join(folder, 'archive');
  const files = (change: (name: string) => boolean): Files =>
    new Map(
      [...(random(2) === 0 ? namedLayout(named) : dockerSaveNew(named))].map(([name, content]) => [
        name,
        change(name) ? mutate(content, random) : content,
      ]),
    );
  const forms: readonly (() => void)[] = [
    () => writeFileSync(path, withChecksums(mutate(makeTar(dockerSaveOld(named)), random))),
    () => writeFileSync(path, withChecksums(mutate(tarOf(dockerSaveNew(named)), random))),
    () => writeFileSync(path, mutate(gzipSync(tarOf(namedLayout(named))), random)),
    () => writeFileSync(path, mutate(zstdCompressSync(tarOf(namedLayout(named))), random)),
    () => writeFileSync(path, tarOf(files((name) => name.endsWith('.json') || name === 'oci-layout'))),
    () =>
      writeFolder(
        path,
        files((name) => random(4) === 0 || name === 'index.json'),
      ),
    () =>
      writeFolder(
        path,
        files((name) => name.startsWith('blobs/') && random(2) === 0),
      ),
  ];
  let imported = 0;
  for (let round = 0; round < 280; round++) {
    forms[round % forms.length]!();
    try {
      const found = await store.images.importImages(path);
      // Whatever came through is what it says that it is.
      assert.ok(found.every(({ id }) => id === image.id));
      imported++;
      for (const { id } of found) await store.images.removeImage({ image: id });
    } catch (error) {
      const where = `seed ${seed}, round ${round}`;
      assert.ok(isError(error) && error.code !== 'INTERNAL', `${where}: ${(error as Error).stack}`);
      assert.ok(error.message.includes(path), `${where}: ${error.message}`);
      assert.deepEqual(await store.images.listImages(), [], where);
    }
    rmSync(path, { recursive: true });
  }
  assert.ok(imported > 10, `${imported} archives were imported`);
  assert.deepEqual(readdirSync(folder), []);
  assert.deepEqual(readdirSync('/').sort(), machine);
  await store.close();
  assert.deepEqual(onDisk(store.folder), { layers: [], staging: [] });
});
