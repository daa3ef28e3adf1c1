import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readCredentials } from '../../../agent/cli/credentials.ts';
import { formatImages, matches } from '../../../agent/cli/images.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { app, busybox, digest, nameless } from '../control/fake-images.ts';

const all = { busybox, app, nameless };

for (const [filter, found] of [
  ['busybox', ['busybox']],
  ['library/busybox', ['busybox']],
  ['docker.io/library/busybox', ['busybox']],
  ['docker.io', []],
  ['box', []],
  ['busybox:1.36', ['busybox']],
  ['busybox:1', []],
  ['busybox:1*', ['busybox']],
  [`busybox@${digest('1')}`, ['busybox']],
  ['app', ['app']],
  ['registry.example:5000/team/app', ['app']],
  ['registry.example:5000/*', ['app']],
  ['registryxexample:5000/team/app', []],
  ['*', ['busybox', 'app']],
  ['*b*', ['busybox']],
  ['aaaa', ['busybox']],
  ['a', ['busybox', 'app']],
  ['sha256:ab', ['app']],
  ['ffffffffffff', ['nameless']],
  ['(', []],
  ['.*', []],
] as const) {
  test(`the filter ${filter}`, () => {
    const names = Object.entries(all).filter(([, image]) => matches(image, filter));
    assert.deepEqual(
      names.map(([name]) => name),
      found,
    );
  });
}

test('the table has a row for each name', () => {
  assert.equal(
    formatImages([busybox, nameless, app], { digests: false, full: false }),
    `REPOSITORY                      TAG     IMAGE ID      SIZE    PINNED
<none>                          <none>  ffffffffffff  999 B   no
docker.io/library/busybox       1.36    aaaaaaaaaaaa  4.3 MB  no
docker.io/library/busybox       latest  aaaaaaaaaaaa  4.3 MB  no
registry.example:5000/team/app  v2      abcccccccccc  123 MB  yes
`,
  );
  const untagged = { ...busybox, repoTags: [] };
  assert.equal(
    formatImages([untagged], { digests: true, full: true }),
    `REPOSITORY                 TAG     DIGEST${' '.repeat(67)}IMAGE ID${' '.repeat(65)}SIZE    PINNED
docker.io/library/busybox  <none>  ${digest('1')}  ${digest('a')}  4.3 MB  no
`,
  );
  assert.equal(
    formatImages([], { digests: false, full: false }),
    'REPOSITORY  TAG  IMAGE ID  SIZE  PINNED\n',
  );
});

const sources = (change: Partial<Parameters<typeof readCredentials>[0]>) => {
  const warnings: string[] = [];
  const result = readCredentials({
    creds: undefined,
    fromStdin: false,
    readStdin: async () => 'piped:p:w \n',
    ask: async () => 'typed',
    warn: (text) => warnings.push(text),
    ...change,
  });
  return { result, warnings };
};

test('credentials come from where they were said to be', async () => {
  assert.equal(await sources({}).result, undefined);
  const shown = sources({ creds: 'me:p:w' });
  assert.deepEqual(await shown.result, { username: 'me', password: 'p:w' });
  assert.equal(shown.warnings.length, 1);
  assert.ok(!shown.warnings[0]!.includes('p:w'));
  const hidden = sources({ creds: 'me' });
  assert.deepEqual(await hidden.result, { username: 'me', password: 'typed' });
  assert.deepEqual(await sources({ fromStdin: true }).result, { username: 'piped', password: 'p:w ' });
  assert.deepEqual(await sources({ creds: 'me', fromStdin: true, readStdin: async () => 'a:b\r\n' }).result, {
    username: 'me',
    password: 'a:b',
  });
  assert.deepEqual([...hidden.warnings], []);
});

for (const [what, change] of [
  ['both', { creds: 'me:hunter2', fromStdin: true }],
  ['no user', { creds: ':hunter2' }],
  ['no password', { creds: 'me:' }],
  ['nothing typed', { creds: 'me', ask: async () => '' }],
  ['no terminal', { creds: 'me', ask: undefined }],
  ['no colon on standard input', { fromStdin: true, readStdin: async () => 'hunter2' }],
  ['nothing on standard input', { fromStdin: true, readStdin: async () => '' }],
] as const) {
  test(`credentials: ${what} is wrong usage`, async () => {
    await assert.rejects(sources(change).result, (error) => {
      assert.ok(isError(error, 'INVALID_ARGUMENT'));
      return !error.message.includes('hunter2');
    });
  });
}
