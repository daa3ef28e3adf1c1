/**
 * `state.db`: what keelson remembers. SQLite in WAL mode; one process owns it at a time.
 * Commits survive kill -9 at once; a power cut may lose the newest ones but never tears one
 * (synchronous=NORMAL), which is why everything on disk is made real before its row is written and
 * what no row names is swept at start.
 */
import { closeSync, mkdirSync, openSync } from 'node:fs';
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

/**
 * Opens (or makes) the database at `path`, mode 0600, under an exclusive lock that ends with the process.
 * Throws DATABASE_LOCKED when another process owns it.
 */
export function openDatabase(path: string): Database {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const lock = lockFile(`${path}.lock`);
  if (lock === undefined) {
    throw new KeelsonError('DATABASE_LOCKED', `${path} is in use by another keelson process`, {
      hint: 'stop it first, or give this one its own stateDir',
    });
  }
  closeSync(openSync(path, 'a', 0o600));
  let db: DatabaseSync;
  try {
    db = new DatabaseSync(path);
    db.exec(
      'PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON; PRAGMA cache_size=-512;',
    );
    db.exec('CREATE TABLE IF NOT EXISTS versions (room TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT');
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
