/** What each pod was given, kept beside its volumes so that another run of the agent goes on from there. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Allocation } from './allocation.ts';

export interface AllocationRecord {
  readonly allocation: Allocation;
  /** Of the pod's object that asked for it. */
  readonly generation: number;
  /** The cgroups have it, and it was told. */
  readonly completed: boolean;
}

const fileName = 'allocation.json';

function folderOf(kubeletDir: string, uid: string): string {
  return join(kubeletDir, 'pods', uid);
}

/**
 * The record of a pod that was resized; undefined where it never was, or where it cannot be read (its status then
 * tells). Synchronous: a small file, and only of pods that another run took in.
 */
export function readAllocation(kubeletDir: string, uid: string): AllocationRecord | undefined {
  try {
    const text = readFileSync(join(folderOf(kubeletDir, uid), fileName), 'utf8');
    const { allocation, generation, completed } = JSON.parse(text) as AllocationRecord;
    if (typeof allocation?.containers !== 'object' || typeof generation !== 'number') return undefined;
    return { allocation, generation, completed: completed === true };
  } catch {
    return undefined;
  }
}

/**
 * Writes it before anything is done for it. Not synced: it has to outlive the agent, while a power cut ends the
 * containers too. Throws the error of the file system.
 */
export function writeAllocation(kubeletDir: string, uid: string, record: AllocationRecord): void {
  const folder = folderOf(kubeletDir, uid);
  mkdirSync(folder, { recursive: true, mode: 0o750 });
  const half = join(folder, `${fileName}.new`);
  writeFileSync(half, JSON.stringify(record), { mode: 0o600 });
  renameSync(half, join(folder, fileName));
}
