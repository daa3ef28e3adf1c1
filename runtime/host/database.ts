/**
 * `state.db`: what keelson remembers. SQLite in WAL mode; one process owns it at a time.
 * Commits survive kill -9 at once; a power cut may lose the newest ones but never tears one
 * (synchronous=NORMAL), which is why what stands on disk is made before its row is written and what no
 * row names is swept at start.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  truncateSync,
} from 'node:fs';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { errnoOf, KeelsonError } from './errors.ts';
import { tryLock } from './syscalls.ts';

export interface Database {
  /** A prepared statement, made once per text and kept. */
  statement(sql: string): StatementSync;
  /** Runs `body` in one transaction: all of it or, when it throws, nothing. Not nested, not async. */
  transaction<T>(body: () => T): T;
  /**
   * Brings a room's tables to the newest version. `steps[i]` is the SQL from version i to i + 1; steps are only
   * ever appended. Throws DATABASE_CORRUPT when the file is from a newer keelson.
   */
  migrate(room: string, steps: readonly string[]): void;
  /** Resolves when all that has been committed survives a power cut. Off the main thread. */
  sync(): Promise<void>;
  close(): void;
}

/**
 * A process that was killed just now may have left a child between its fork and its exec, which holds the lock for
 * some milliseconds more. Waits for it on the spot: nothing else can go on without the state anyway.
 */
function lockSoon(lock: number): boolean {
  const cell = new Int32Array(new SharedArrayBuffer(4));
  for (let tries = 50; !tryLock(lock); tries--) {
    if (tries === 0) return false;
    Atomics.wait(cell, 0, 0, 20);
  }
  return true;
}

/**
 * Opens (or makes) the file `path`, mode 0600, and takes the exclusive lock on it, which ends with the process or with
 * the descriptor. Undefined where another process has it.
 */
export function lockFile(path: string): number | undefined {
  const lock = openSync(path, 'w', 0o600);
  if (lockSoon(lock)) return lock;
  closeSync(lock);
  return undefined;
}

/** What could be taken over from a damaged database. */
export interface Salvage {
  /** Where the damaged file is now. */
  readonly movedTo: string;
  readonly why: string;
  readonly rows: number;
  /** Tables that may have lost rows. */
  readonly incomplete: readonly string[];
}

export interface DatabaseOptions {
  /**
   * A damaged file is moved aside, what can be read of it goes into a new one, and this is told; for a node that nobody
   * attends. Without it a damaged file is an error.
   */
  readonly onSalvage?: (salvage: Salvage) => void;
}

/**
 * Opens (or makes) the database at `path`, mode 0600, under an exclusive lock that ends with the process.
 * Throws DATABASE_LOCKED when another process owns it, DATABASE_CORRUPT.
 */
export function openDatabase(path: string, { onSalvage }: DatabaseOptions = {}): Database {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const lock = lockFile(`${path}.lock`);
  if (lock === undefined) {
    throw new KeelsonError('DATABASE_LOCKED', `${path} is in use by another keelson process`, {
      hint: 'stop it first, or give this one its own stateDir',
    });
  }
  let db: DatabaseSync;
  try {
    if (onSalvage !== undefined) finishSalvage(path);
    try {
      db = openChecked(path);
    } catch (error) {
      if (onSalvage === undefined || !isDamage(error)) throw error;
      const result = salvage(path);
      db = openChecked(path);
      onSalvage({ ...result, why: (error as Error).message });
    }
  } catch (error) {
    closeSync(lock);
    throw new KeelsonError('DATABASE_CORRUPT', `cannot open ${path}: ${(error as Error).message}`, {
      cause: error,
      hint: 'the disk may be damaged or full; check it, then move the file away to start with an empty state',
    });
  }
  const statements = new Map<string, StatementSync>();
  const statement = (sql: string): StatementSync => {
    let found = statements.get(sql);
    if (found === undefined) {
      found = db.prepare(sql);
      statements.set(sql, found);
    }
    return found;
  };
  const transaction = <T>(body: () => T): T => {
    db.exec('BEGIN IMMEDIATE');
    let result: T;
    try {
      result = body();
    } catch (error) {
      db.exec('ROLLBACK');
      throw error;
    }
    db.exec('COMMIT');
    return result;
  };
  return {
    statement,
    transaction,
    migrate(room, steps) {
      const row = statement('SELECT version FROM versions WHERE room = ?').get(room);
      const version = Number(row?.['version'] ?? 0);
      if (version > steps.length) {
        throw new KeelsonError(
          'DATABASE_CORRUPT',
          `${path} was written by a newer keelson (${room} ${version} > ${steps.length})`,
          {
            hint: 'install that version again; an older one cannot read its state',
          },
        );
      }
      if (version === steps.length) return;
      transaction(() => {
        for (const step of steps.slice(version)) db.exec(step);
        statement(
          'INSERT INTO versions VALUES (?, ?) ON CONFLICT (room) DO UPDATE SET version = excluded.version',
        ).run(room, steps.length);
      });
    },
    async sync() {
      // Commits are in the log until a checkpoint, which syncs both files, moves them to the database.
      let log: FileHandle;
      try {
        log = await open(`${path}-wal`, 'r');
      } catch (error) {
        if (errnoOf(error) === 'ENOENT') return;
        throw error;
      }
      try {
        await log.datasync();
      } finally {
        await log.close();
      }
    },
    close() {
      statements.clear();
      db.close();
      closeSync(lock);
    },
  };
}

/** Throws what SQLite says, or that the file is damaged. */
function openChecked(path: string): DatabaseSync {
  closeSync(openSync(path, 'a', 0o600));
  const db = new DatabaseSync(path);
  try {
    db.exec(
      'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; PRAGMA cache_size=-512;',
    );
    db.exec('CREATE TABLE IF NOT EXISTS versions (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT');
    // A few milliseconds; found later, damage would be in the middle of something.
    const found = db.prepare('PRAGMA integrity_check(1)').get()?.['integrity_check'];
    if (found !== 'ok') throw Object.assign(new Error(String(found)), { errcode: sqliteCorrupt });
  } catch (error) {
    db.close();
    throw error;
  }
  return db;
}

const sqliteCorrupt = 11;
const sqliteNotADatabase = 26;

function isDamage(error: unknown): boolean {
  const code = Number((error as { errcode?: unknown }).errcode) & 0xff;
  return code === sqliteCorrupt || code === sqliteNotADatabase;
}

/**
 * Puts a new database with all that can be read of the damaged one in its place. Each step may be the last of this
 * process: the new file is complete before the old one goes.
 */
function salvage(path: string): Omit<Salvage, 'why'> {
  const rescued = `${path}.salvaged`;
  for (const suffix of ['', '-journal', '-wal', '-shm']) rmSync(`${rescued}${suffix}`, { force: true });
  closeSync(openSync(rescued, 'a', 0o600));
  let copied = { rows: 0, incomplete: ['all'] };
  try {
    copied = copyDatabase(path, rescued);
  } catch {
    // Not even its list of tables can be trusted.
    truncateSync(rescued);
    rmSync(`${rescued}-journal`, { force: true });
  }
  const file = openSync(rescued, 'r');
  fsyncSync(file);
  closeSync(file);
  moveSalvaged(path);
  return { movedTo: `${path}.damaged`, ...copied };
}

/** A process was ended after it had salvaged, and before the file was in place. */
function finishSalvage(path: string): void {
  if (!existsSync(path) && existsSync(`${path}.salvaged`)) moveSalvaged(path);
}

function moveSalvaged(path: string): void {
  for (const suffix of ['', '-wal']) {
    if (existsSync(`${path}${suffix}`)) renameSync(`${path}${suffix}`, `${path}.damaged${suffix}`);
  }
  rmSync(`${path}-shm`, { force: true });
  renameSync(`${path}.salvaged`, path);
}

/** Throws where the tables, or how far their migrations have come, are not certain. */
function copyDatabase(from: string, to: string): { rows: number; incomplete: string[] } {
  const target = new DatabaseSync(to);
  const source = new DatabaseSync(from);
  const incomplete: string[] = [];
  let rows = 0;
  try {
    target.exec('PRAGMA foreign_keys=OFF; BEGIN');
    const list = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' AND type = ?";
    for (const { name, sql } of source.prepare(list).all('table')) {
      target.exec(String(sql));
      const copied = copyTable(source, target, String(name));
      rows += copied.rows;
      if (!copied.whole) incomplete.push(String(name));
    }
    for (const { sql } of source.prepare(list).all('index')) target.exec(String(sql));
    for (;;) {
      const orphans = target.prepare('PRAGMA foreign_key_check').all();
      if (orphans.length === 0) break;
      for (const { table, rowid } of orphans) {
        target.prepare(`DELETE FROM "${table}" WHERE rowid = ?`).run(rowid as number);
        rows--;
        if (!incomplete.includes(String(table))) incomplete.push(String(table));
      }
    }
    if (incomplete.includes('versions')) throw new Error('the versions of the tables are lost');
    target.exec('COMMIT');
    return { rows, incomplete };
  } finally {
    source.close();
    target.close();
  }
}

/** From both ends, up to where it cannot be read. */
function copyTable(
  source: DatabaseSync,
  target: DatabaseSync,
  name: string,
): { rows: number; whole: boolean } {
  let rows = 0;
  let whole = true;
  const columns = source.prepare(`SELECT * FROM "${name}"`).columns();
  const insert = target.prepare(`INSERT OR IGNORE INTO "${name}" VALUES (${columns.map(() => '?')})`);
  for (const order of ['ASC', 'DESC']) {
    try {
      const read = source.prepare(`SELECT * FROM "${name}" NOT INDEXED ORDER BY rowid ${order}`);
      read.setReadBigInts(true);
      for (const row of read.iterate()) {
        try {
          const { changes } = insert.run(...Object.values(row));
          if (changes === 0 && order === 'ASC') whole = false;
          rows += Number(changes);
        } catch {
          whole = false; // A value of a type that the column does not take.
        }
      }
      if (order === 'ASC') return { rows, whole };
    } catch {
      whole = false;
    }
  }
  return { rows, whole };
}
