/** Variables from files: how they are read, and from where they are not. */
import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { EnvFileError, parseEnvFile, readFileKey } from '../../../agent/pods/actions/env_file.ts';
import { isError } from '../../../runtime/host/errors.ts';
import { exec } from '../../../runtime/host/exec.ts';

test('assignments, case by case', () => {
  const good: readonly [string, string][] = [
    ["A='1'", '1'],
    ["A='1'\n", '1'],
    ["  \t\n# x\nB='2'\n\tA='1' # why", '1'],
    ["A=''", ''],
    ["A='$B \\n \" #'", '$B \\n " #'],
    ["A='one\ntwo\n\nthree'\nB='x'", 'one\ntwo\n\nthree'],
    ["A='1'\r\nB='2'\r\n", '1'],
    ["A='1=2'", '1=2'],
    ["A= '1'", ''],
    ["B= 'x'\nA='1'", '1'],
    ["A='first'\nA='second'", 'first'],
    ["A='1'\nnonsense", '1'],
    ["B='2'", ''],
    ['', ''],
  ];
  for (const [text, value] of good) assert.equal(parseEnvFile(text, 'A'), value, JSON.stringify(text));
  const bad: readonly [string, RegExp][] = [
    ["export\nA='1'", /line 1: missing '='/],
    ["B='2'\n='1'", /line 2: empty variable name/],
    ["A ='1'", /line 1: whitespace before '='/],
    ['A=1', /line 1: value must be enclosed/],
    ['A="1"', /line 1: value must be enclosed/],
    ['A=', /line 1: value must be enclosed/],
    ["A='1'2", /line 1: unexpected content/],
    ["B='2'\nA='1\n\n", /line 2: unclosed single quote/],
  ];
  for (const [text, message] of bad)
    assert.throws(
      () => parseEnvFile(text, 'A'),
      (error) => error instanceof EnvFileError && message.test(error.message),
      JSON.stringify(text),
    );
});

test('a file of the volume, and nothing else', async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-env-file-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const volume = join(folder, 'volume');
  await mkdir(join(volume, 'sub'), { recursive: true });
  await writeFile(join(folder, 'outside'), "A='secret'\n");
  await writeFile(join(volume, 'sub/env'), "A='1'\n");
  await symlink('sub/env', join(volume, 'inside'));
  await symlink('../outside', join(volume, 'out'));
  await symlink(folder, join(volume, 'up'));
  await exec('mkfifo', [join(volume, 'fifo')], { deadlineMs: 5000 });
  const read = (path: string, more: { key?: string; optional?: boolean } = {}) =>
    readFileKey(volume, { volumeName: 'v', path, key: 'A', ...more });
  assert.equal(await read('sub/env'), '1');
  assert.equal(await read('inside'), '1');
  assert.equal(await read('sub/env', { key: 'B', optional: true }), undefined);
  assert.equal(await read('none', { optional: true }), undefined);
  const refused = (path: string, message: RegExp, more = {}) =>
    assert.rejects(
      () => read(path, more),
      (error: Error) => isError(error, 'CONTAINER_CONFIG_INVALID') && message.test(error.message),
      path,
    );
  await refused('sub/env', /key "B" not found in file/, { key: 'B' });
  for (const path of ['none', 'out', 'up/outside', '../outside', '/etc/passwd', 'fifo', 'sub'])
    await refused(path, /^couldn't parse env file$/, { optional: path === 'out' });
});
