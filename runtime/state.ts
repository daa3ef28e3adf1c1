/**
 * What the runtime remembers: one row for each sandbox and container, in `state.db` and, read once, in memory.
 *
 * A row is written in state `creating` before anything of it exists on the machine and deleted after the last of it is
 * gone; so whatever no row names may be swept. The configuration in a row never changes; the rest does.
 */
import type {
  ContainerConfig,
  LinuxContainerResources,
  PodSandboxConfig,
  PodSandboxMetadata,
} from './api.ts';
import type { Database } from './host/database.ts';
import type { ProcessIdentity } from './processes.ts';

export interface SandboxRecord {
  readonly id: string;
  readonly config: PodSandboxConfig;
  readonly handler: string;
  readonly createdAt: number;
  /** /proc/sys/kernel/random/boot_id at creation: pins do not outlive the boot. */
  readonly bootId: string;
  readonly state: 'creating' | 'ready' | 'notready';
  /** CNI ADD was called and DEL has not succeeded since. */
  readonly attached: boolean;
  readonly ips: readonly string[];
  /** The first process of a shared PID namespace. */
  readonly init: ProcessIdentity | undefined;
}

/** What later calls need of the configuration; the environment is not kept, since it may hold secrets. */
export type KeptContainerConfig = Omit<ContainerConfig, 'envs' | 'command' | 'args'>;

export interface ContainerRecord {
  readonly id: string;
  readonly sandboxId: string;
  readonly config: KeptContainerConfig;
  readonly createdAt: number;
  readonly imageId: string;
  readonly imageDigestRef: string;
  /** Below the root of the cgroup tree. */
  readonly cgroup: string;
  readonly stopSignal: string;
  readonly state: 'creating' | 'created' | 'running' | 'exited';
  readonly init: ProcessIdentity | undefined;
  readonly monitor: ProcessIdentity | undefined;
  readonly user: { uid: number; gid: number; supplementalGroups: readonly number[] } | undefined;
  /** As last updated; absent: those of the configuration. */
  readonly resources?: LinuxContainerResources;
  readonly startedAt: number;
  readonly finishedAt: number;
  readonly exitCode: number;
  readonly reason: string;
  readonly message: string;
  /** Mount and runc state are gone; only folders and the row are left. */
  readonly cleaned: boolean;
}

type SandboxChange = Partial<Pick<SandboxRecord, 'state' | 'attached' | 'ips' | 'init'>>;
type ContainerChange = Partial<
  Omit<ContainerRecord, 'id' | 'sandboxId' | 'config' | 'createdAt' | 'imageId' | 'imageDigestRef' | 'cgroup'>
>;

export interface State {
  readonly sandboxes: ReadonlyMap<string, SandboxRecord>;
  readonly containers: ReadonlyMap<string, ContainerRecord>;
  containersOf(sandboxId: string): ContainerRecord[];
  sandboxFor(metadata: PodSandboxMetadata): SandboxRecord | undefined;
  containerFor(sandboxId: string, name: string, attempt: number): ContainerRecord | undefined;
  addSandbox(record: SandboxRecord): void;
  /** Changes the row and returns the new record; undefined where it is gone. */
  changeSandbox(id: string, change: SandboxChange): SandboxRecord | undefined;
  removeSandbox(id: string): void;
  addContainer(record: ContainerRecord): void;
  changeContainer(id: string, change: ContainerChange): ContainerRecord | undefined;
  removeContainer(id: string): void;
}

const steps = [
  `CREATE TABLE sandboxes (
     id TEXT PRIMARY KEY,
     uid TEXT NOT NULL, name TEXT NOT NULL, namespace TEXT NOT NULL, attempt INTEGER NOT NULL,
     fixed TEXT NOT NULL,
     changing TEXT NOT NULL,
     UNIQUE (uid, name, namespace, attempt)
   ) STRICT;
   CREATE TABLE containers (
     id TEXT PRIMARY KEY,
     sandbox TEXT NOT NULL REFERENCES sandboxes (id),
     name TEXT NOT NULL, attempt INTEGER NOT NULL,
     fixed TEXT NOT NULL,
     changing TEXT NOT NULL,
     UNIQUE (sandbox, name, attempt)
   ) STRICT;`,
];

/** The part of a sandbox's record that changes, as its column holds it. */
function sandboxChanging({ state, attached, ips, init }: SandboxRecord): string {
  return JSON.stringify({ state, attached, ips, init });
}

function containerChanging(record: ContainerRecord): string {
  const { id, sandboxId, config, createdAt, imageId, imageDigestRef, cgroup, ...changing } = record;
  return JSON.stringify(changing);
}

/** What the columns hold is what the functions above have written; undefined where it is not even JSON. */
function parseRow(row: Record<string, unknown>) {
  try {
    return { ...JSON.parse(String(row['fixed'])), ...JSON.parse(String(row['changing'])) };
  } catch {
    return undefined;
  }
}

/** Opens the tables in `db` and reads them. */
export function openState(db: Database): State {
  db.migrate('runtime', steps);
  const sandboxes = new Map<string, SandboxRecord>();
  const containers = new Map<string, ContainerRecord>();
  // A row that the disk has damaged is no row: what it was about is swept like all that no row names.
  for (const row of db.statement('SELECT id, fixed, changing FROM sandboxes').all()) {
    const id = String(row['id']);
    const parsed = parseRow(row);
    if (parsed !== undefined) sandboxes.set(id, { init: undefined, ...parsed, id });
    else {
      db.transaction(() => {
        db.statement('DELETE FROM containers WHERE sandbox = ?').run(id);
        db.statement('DELETE FROM sandboxes WHERE id = ?').run(id);
      });
    }
  }
  for (const row of db.statement('SELECT id, sandbox, fixed, changing FROM containers').all()) {
    const id = String(row['id']);
    const parsed = parseRow(row);
    if (parsed === undefined) {
      db.statement('DELETE FROM containers WHERE id = ?').run(id);
      continue;
    }
    const sandboxId = String(row['sandbox']);
    containers.set(id, {
      init: undefined,
      monitor: undefined,
      user: undefined,
      ...parsed,
      id,
      sandboxId,
    });
  }
  return {
    sandboxes,
    containers,
    containersOf: (sandboxId) => [...containers.values()].filter((record) => record.sandboxId === sandboxId),
    sandboxFor: (wanted) =>
      [...sandboxes.values()].find(
        ({ config: { metadata } }) =>
          metadata.uid === wanted.uid &&
          metadata.attempt === wanted.attempt &&
          metadata.name === wanted.name &&
          metadata.namespace === wanted.namespace,
      ),
    containerFor: (sandboxId, name, attempt) =>
      [...containers.values()].find(
        (record) =>
          record.sandboxId === sandboxId &&
          record.config.metadata.name === name &&
          record.config.metadata.attempt === attempt,
      ),
    addSandbox(record) {
      const { uid, name, namespace, attempt } = record.config.metadata;
      const { config, handler, createdAt, bootId } = record;
      db.statement('INSERT INTO sandboxes VALUES (?, ?, ?, ?, ?, ?, ?)').run(
        record.id,
        uid,
        name,
        namespace,
        attempt,
        JSON.stringify({ config, handler, createdAt, bootId }),
        sandboxChanging(record),
      );
      sandboxes.set(record.id, record);
    },
    changeSandbox(id, change) {
      const old = sandboxes.get(id);
      if (old === undefined) return undefined;
      const record = { ...old, ...change };
      db.statement('UPDATE sandboxes SET changing = ? WHERE id = ?').run(sandboxChanging(record), id);
      sandboxes.set(id, record);
      return record;
    },
    removeSandbox(id) {
      db.statement('DELETE FROM sandboxes WHERE id = ?').run(id);
      sandboxes.delete(id);
    },
    addContainer(record) {
      const { config, createdAt, imageId, imageDigestRef, cgroup } = record;
      db.statement('INSERT INTO containers VALUES (?, ?, ?, ?, ?, ?)').run(
        record.id,
        record.sandboxId,
        config.metadata.name,
        config.metadata.attempt,
        JSON.stringify({ config, createdAt, imageId, imageDigestRef, cgroup }),
        containerChanging(record),
      );
      containers.set(record.id, record);
    },
    changeContainer(id, change) {
      const old = containers.get(id);
      if (old === undefined) return undefined;
      const record = { ...old, ...change };
      db.statement('UPDATE containers SET changing = ? WHERE id = ?').run(containerChanging(record), id);
      containers.set(id, record);
      return record;
    },
    removeContainer(id) {
      db.statement('DELETE FROM containers WHERE id = ?').run(id);
      containers.delete(id);
    },
  };
}
