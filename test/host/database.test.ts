import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { copyFile, mkdtemp, readFile, rename, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { openDatabase, type Salvage } from '../../runtime/host/database.ts';
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

/** A database with three tables, closed, and what is in them. */
async function filled(t: Parameters<typeof place>[0]): Promise<string> {
  const path = await place(t);
  const db = openDatabase(path);
  db.migrate('room', [
    `CREATE TABLE parents (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
     CREATE INDEX parents_name ON parents (name);
     CREATE TABLE children (id INTEGER PRIMARY KEY, parent INTEGER NOT NULL REFERENCES parents, big INTEGER) STRICT;
     CREATE TABLE blobs (id TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT`,
  ]);
  db.transaction(() => {
    for (let id = 1; id <= 500; id++) {
      db.statement('INSERT INTO parents VALUES (?, ?)').run(id, `parent ${id} ${'x'.repeat(50)}`);
      db.statement('INSERT INTO children VALUES (?, ?, ?)').run(id, id, 2n ** 62n);
      db.statement('INSERT INTO blobs VALUES (?, ?)').run(`blob ${id}`, Buffer.alloc(100, id));
    }
  });
  db.close();
  return path;
}

test('a damaged database gives what can be read of it to a new one', async (t) => {
  const path = await filled(t);
  const whole = await readFile(path);
  // Every page in turn, each in three ways.
  let told = 0;
  let kept = 0;
  let pages = 0;
  for (let page = 0; page * 4096 < whole.length; page++) {
    for (const byte of [0, 0xff, undefined]) {
      const bytes = Buffer.from(whole);
      if (byte === undefined) bytes.fill(0x5a, page * 4096 + 100, page * 4096 + 140);
      else bytes.fill(byte, page * 4096, (page + 1) * 4096);
      await writeFile(path, bytes);
      let salvage: Salvage | undefined;
      const db = openDatabase(path, {
        onSalvage: (found) => {
          salvage = found;
        },
      });
      pages++;
      if (salvage !== undefined) {
        told++;
        assert.equal(salvage.movedTo, `${path}.damaged`);
        assert.deepEqual(await readFile(salvage.movedTo), bytes);
      }
      if (salvage === undefined || salvage.rows > 0) {
        const count = (sql: string) => Number(db.statement(`SELECT count(*) AS n FROM ${sql}`).get()?.['n']);
        kept += count('parents') + count('children') + count('blobs');
        assert.equal(count('children WHERE parent NOT IN (SELECT id FROM parents)'), 0);
        assert.equal(db.statement('PRAGMA integrity_check').get()?.['integrity_check'], 'ok');
        db.migrate('room', ['nothing that would run again']);
      } else db.migrate('room', ['CREATE TABLE parents (id INTEGER PRIMARY KEY) STRICT']);
      db.close();
    }
  }
  assert.ok(told > pages / 2, `${told} of ${pages} were found`);
  assert.ok(kept > (pages * 1500) / 2, `${kept} of ${pages * 1500} rows were kept`);
});

test('a salvage that was broken off is begun again or ended, and a healthy database is left alone', async (t) => {
  const path = await filled(t);
  const never = () => assert.fail('nothing is damaged');
  openDatabase(path, { onSalvage: never }).close();

  await writeFile(`${path}.salvaged`, 'half of a file');
  openDatabase(path, { onSalvage: never }).close();

  // The damaged file had been moved away, the new one was not yet in its place.
  await rename(path, `${path}.salvaged`);
  const db = openDatabase(path, { onSalvage: never });
  assert.equal(db.statement('SELECT count(*) AS n FROM parents').get()?.['n'], 500);
  db.close();
});

test('all of a damaged database is lost where its list of tables is', async (t) => {
  const path = await filled(t);
  await writeFile(path, 'no database '.repeat(1000));
  const told: Salvage[] = [];
  const db = openDatabase(path, { onSalvage: (salvage) => told.push(salvage) });
  assert.deepEqual(
    told.map(({ rows, incomplete }) => ({ rows, incomplete })),
    [{ rows: 0, incomplete: ['all'] }],
  );
  db.migrate('room', ['CREATE TABLE parents (id INTEGER PRIMARY KEY) STRICT']);
  db.close();
});

test('what sync has returned for is in the files', async (t) => {
  const path = await filled(t);
  const db = openDatabase(path);
  db.statement('INSERT INTO parents VALUES (501, ?)').run('new');
  await db.sync();
  for (const suffix of ['', '-wal']) await copyFile(`${path}${suffix}`, `${path}.copy${suffix}`);
  const copy = openDatabase(`${path}.copy`);
  assert.equal(copy.statement('SELECT name FROM parents WHERE id = 501').get()?.['name'], 'new');
  copy.close();
  db.close();
  await db.sync();
});
