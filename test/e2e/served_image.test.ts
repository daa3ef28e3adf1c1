import assert from 'node:assert/strict';
import { test } from 'node:test';
import { buildImage } from '../peers/image.ts';
import { servedImage } from './served_image.ts';

test('an image lies where the fake registry server looks: by digest, and its tag as a file', () => {
  const image = buildImage({ layers: [{ files: [{ path: 'a', content: 'a' }] }] });
  const entries = servedImage('pause', 'testing', image);
  const contents = new Map(entries.map(({ path, content }) => [path, content]));
  const at = (kind: string, digest: string) => {
    const hash = digest.slice('sha256:'.length);
    return contents.get(`var/registry/pause/${kind}/sha256/${hash.slice(0, 2)}/${hash}/data`);
  };
  assert.equal(contents.get('var/registry/pause/manifests/testing'), image.manifest.digest);
  assert.equal(at('manifests', image.manifest.digest), image.manifest.data);
  for (const blob of [image.config, ...image.layers]) assert.equal(at('blobs', blob.digest), blob.data);
  // Every folder comes before what is in it.
  const seen = new Set<string>();
  for (const { path } of entries) {
    const parent = path.split('/').slice(0, -1).join('/');
    assert.ok(parent === '' || seen.has(parent), path);
    seen.add(path);
  }
});
