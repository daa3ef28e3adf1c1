/** What is remembered in state.db of the archives of the watched folder. */
import type { Database } from '../../runtime/host/database.ts';

export interface RememberedArchive {
  /** What the file was when it was read. */
  readonly version: string;
  /** The ids of its images; none where it failed. */
  readonly images: readonly string[];
  /** Why it could not be imported. */
  readonly failure: string | undefined;
}

export interface RememberedArchives {
  get(file: string): RememberedArchive | undefined;
  put(file: string, archive: RememberedArchive): void;
  /** Forgets all but `files`. */
  keepOnly(files: readonly string[]): void;
}

const schema = [
  `CREATE TABLE archives (
     file TEXT PRIMARY KEY, version TEXT NOT NULL, images TEXT NOT NULL, failure TEXT
   ) STRICT;`,
];

export function rememberArchives(db: Database): RememberedArchives {
  db.migrate('archives', schema);
  const sql = db.statement;
  return {
    get(file) {
      const row = sql('SELECT version, images, failure FROM archives WHERE file = ?').get(file);
      if (row === undefined) return undefined;
      const failure = row['failure'] === null ? undefined : String(row['failure']);
      return { version: String(row['version']), images: JSON.parse(String(row['images'])), failure };
    },
    put(file, { version, images, failure }) {
      sql('INSERT OR REPLACE INTO archives VALUES (?, ?, ?, ?)').run(
        file,
        version,
        JSON.stringify(images),
        failure ?? null,
      );
    },
    keepOnly(files) {
      const kept = new Set(files);
      for (const { file } of sql('SELECT file FROM archives').all()) {
        if (!kept.has(String(file))) sql('DELETE FROM archives WHERE file = ?').run(String(file));
      }
    },
  };
}
