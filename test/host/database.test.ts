import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { openDatabase } from '../../runtime/host/database.ts';
import { isError } from '../../runtime/host/errors.ts';

async function place(t: TestContext): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  return join(root, 'deep', 'state.db');
}

const steps = ['CREATE TABLE things (name TEXT PRIMARY KEY) STRICT'];

test('rows stay, the file is for root only, one process at a time', async (t) => {
  const path = await place(t);
  const first = openDatabase(path);
  first.migrate('room', steps);
  first.statement('INSERT INTO things VALUES (?)').run('a');
  assert.equal(first.statement('SELECT 1'), first.statement('SELECT 1'), 'statements are kept');
  assert.throws(
    () => openDatabase(path),
    (error) => isError(error, 'DATABASE_LOCKED'),
  );
  assert.equal((await stat(path)).mode & 0o777, 0o600);
  first.close();
  const second = openDatabase(path);
  t.after(() => second.close());
  second.migrate('room', steps);
  assert.equal(second.statement('SELECT count(*) AS n FROM things').get()?.['n'], 1);
});

test('a transaction is done wholly or not at all', async (t) => {
  const db = openDatabase(await place(t));
  t.after(() => db.close());
  db.migrate('room', steps);
  const insert = db.statement('INSERT INTO things VALUES (?)');
  assert.equal(
    db.transaction(() => insert.run('a').changes),
    1,
  );
  assert.throws(
    () =>
      db.transaction(() => {
        insert.run('b');
        throw new Error('no');
      }),
    /^Error: no$/,
  );
  assert.deepEqual(
    db
      .statement('SELECT name FROM things')
      .all()
      .map((row) => row['name']),
    ['a'],
  );
});

test('migrations: each step once, a failed one not at all, newer files refused', async (t) => {
  const path = await place(t);
  const db = openDatabase(path);
  db.migrate('room', steps);
  const more = [...steps, 'ALTER TABLE things ADD COLUMN size INTEGER'];
  db.migrate('room', more);
  db.migrate('room', more);
  db.migrate('other', ['CREATE TABLE others (x TEXT) STRICT']);
  assert.throws(() => db.migrate('room', [...more, 'CREATE TABLE extra (x TEXT) STRICT; NONSENSE']));
  assert.equal(db.statement("SELECT count(*) AS n FROM sqlite_master WHERE name = 'extra'").get()?.['n'], 0);
  assert.throws(
    () => db.migrate('room', steps),
    (error) => isError(error, 'DATABASE_CORRUPT'),
  );
  db.close();
});

test('what is no database is said, and the lock let go', async (t) => {
  const path = await place(t);
  openDatabase(path).close();
  await writeFile(path, 'this is not a database, by far'.repeat(200));
  const corrupt = (error: unknown) => isError(error, 'DATABASE_CORRUPT');
  assert.throws(() => openDatabase(path), corrupt);
  assert.throws(() => openDatabase(path), corrupt);
});

test('what was committed survives kill -9', async (t) => {
  const path = await place(t);
  const module = new URL('../../runtime/host/database.ts', import.meta.url).href;
  const script = `
    const { openDatabase } = await import(${JSON.stringify(module)});
    const db = openDatabase(${JSON.stringify(path)});
    db.migrate('room', ${JSON.stringify(steps)});
    for (let i = 0; ; i++) { db.statement('INSERT INTO things VALUES (?)').run(String(i)); await new Promise((told) => process.stdout.write(i + '\\n', told)); }`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  let said = '';
  const ended = new Promise((resolve) => child.once('close', resolve));
  child.stdout.on('data', (chunk) => {
    said += chunk;
    if (said.length > 2000) child.kill('SIGKILL');
  });
  await ended;
  const last = Number(said.trimEnd().split('\n').slice(0, -1).at(-1));
  const db = openDatabase(path);
  t.after(() => db.close());
  const count = Number(db.statement('SELECT count(*) AS n FROM things').get()?.['n']);
  assert.ok(count > last, `${count} rows, ${last} were told`);
});
