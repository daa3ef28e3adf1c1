import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Cgroups } from '../../runtime/host/cgroups.ts';
import { isError, KeelsonError } from '../../runtime/host/errors.ts';
import { sliceProperties, systemdSlices } from '../../runtime/host/slices.ts';

const path = '/kubepods.slice/kubepods-pod1.slice';

function machine(options: { groups?: string[]; refuse?: Readonly<Record<string, string>> } = {}) {
  const calls: string[][] = [];
  const removed: string[] = [];
  const cgroups = {
    version: 2,
    children: async () => options.groups ?? [],
    remove: async (group: string) => void removed.push(group),
  } as Partial<Cgroups> as Cgroups;
  const slices = systemdSlices(cgroups, async (method, args) => {
    calls.push([method, ...args]);
    const stderr = options.refuse?.[method];
    if (stderr !== undefined) throw new KeelsonError('EXEC_FAILED', 'busctl failed', { details: { stderr } });
  });
  return { slices, calls, removed };
}

test('resources as properties of a slice', () => {
  assert.deepEqual(sliceProperties({}), []);
  assert.deepEqual(
    sliceProperties({
      cpuShares: 1024,
      cpuQuota: 12_345,
      cpuPeriod: 50_000,
      memoryLimitBytes: 7,
      pidsLimit: 9,
    }),
    [
      ['CPUWeight', 't', '100'],
      ['CPUQuotaPerSecUSec', 't', '250000'],
      ['CPUQuotaPeriodUSec', 't', '50000'],
      ['MemoryMax', 't', '7'],
      ['TasksMax', 't', '9'],
    ],
  );
  assert.deepEqual(sliceProperties({ cpuQuota: 50_000, cpuPeriod: 100_000 }), [
    ['CPUQuotaPerSecUSec', 't', '500000'],
  ]);
  const infinity = '18446744073709551615';
  assert.deepEqual(
    sliceProperties({ cpuQuota: -1, memoryLimitBytes: -1, pidsLimit: -1 }).map(([, , value]) => value),
    [infinity, infinity, infinity],
  );
});

test('a slice is started with its limits', async () => {
  const { slices, calls } = machine();
  await slices.ensure(path, { pidsLimit: 9 });
  assert.deepEqual(calls, [
    [
      ...['StartTransientUnit', 'ssa(sv)a(sa(sv))', 'kubepods-pod1.slice', 'replace', '6'],
      ...['Description', 's', 'pod cgroup kubepods-pod1.slice', 'DefaultDependencies', 'b', 'false'],
      ...['CPUAccounting', 'b', 'true', 'MemoryAccounting', 'b', 'true', 'TasksAccounting', 'b', 'true'],
      ...['TasksMax', 't', '9', '0'],
    ],
  ]);
});

test('a slice that is there gets new limits; another refusal is told', async () => {
  const there = machine({ refuse: { StartTransientUnit: 'Call failed: Unit x.slice already exists.' } });
  await there.slices.ensure(path, { pidsLimit: 9 });
  assert.deepEqual(there.calls.slice(1), [
    [...['SetUnitProperties', 'sba(sv)', 'kubepods-pod1.slice', 'true'], ...['1', 'TasksMax', 't', '9']],
  ]);
  await there.slices.ensure(path);
  assert.equal(there.calls.length, 3, 'nothing to set');
  const refused = machine({ refuse: { StartTransientUnit: 'Call failed: Access denied' } });
  await assert.rejects(refused.slices.ensure(path), (error) => isError(error, 'EXEC_FAILED'));
});

test('a slice is stopped before its group goes, unless there is none', async () => {
  const gone = machine();
  await gone.slices.remove(path);
  assert.deepEqual([gone.calls, gone.removed], [[], []]);
  const there = machine({ groups: ['kubepods-pod1.slice'] });
  await there.slices.remove(path);
  assert.deepEqual(there.calls, [['StopUnit', 'ss', 'kubepods-pod1.slice', 'replace']]);
  assert.deepEqual(there.removed, [path]);
  const unknown = machine({
    groups: ['kubepods-pod1.slice'],
    refuse: { StopUnit: 'Call failed: Unit kubepods-pod1.slice not loaded.' },
  });
  await unknown.slices.remove(path);
  assert.deepEqual(unknown.removed, [path], 'a group that systemd does not know');
});
