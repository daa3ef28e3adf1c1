import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { accessSync, constants, readFileSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate } from 'node:timers/promises';
import { makeOomParser } from '../../../agent/node/warnings/oom_lines.ts';
import { resolverFault } from '../../../agent/node/warnings/resolver.ts';
import { startNodeWarnings } from '../../../agent/node/warnings/warn.ts';
import { type Logger, makeLogger } from '../../../runtime/host/log.ts';

const log = makeLogger('silent');
const noKernelLog = (() => {
  try {
    accessSync('/dev/kmsg', constants.R_OK | constants.W_OK);
    return false;
  } catch {
    return '/dev/kmsg is not there';
  }
})();
const first = '<4>[1.0] stress invoked oom-killer: gfp_mask=0x140cca, order=0, oom_score_adj=0';
const words = ',nodemask=(null),cpuset=/,mems_allowed=0';
const global = `<6>[1.1] oom-kill:constraint=CONSTRAINT_NONE${words},global_oom,task_memcg=/kubepods/x,task=stress,pid=7,uid=0`;
const ofGroup = `<6>[1.1] oom-kill:constraint=CONSTRAINT_MEMCG${words},oom_memcg=/kubepods/pod1,task_memcg=/kubepods/pod1/c,task=stress,pid=7,uid=0`;
const last = '<3>[1.2] Out of memory: Killed process 7 (stress) total-vm:1kB, anon-rss:1kB';

test('only the end of all memory of the machine is told, and only once', () => {
  const all = (...lines: string[]) => lines.map(makeOomParser()).filter((found) => found !== undefined);
  const found = [{ process: 'stress', pid: 7 }];
  assert.deepEqual(all(first, 'Mem-Info:', global, last), found);
  assert.deepEqual(all(first, ofGroup, last), []);
  assert.deepEqual(all(first, ofGroup.replace('oom_memcg=/kubepods/pod1', 'oom_memcg=/'), last), found);
  const limited = 'Task in /kubepods/c killed as a result of limit of /kubepods';
  assert.deepEqual(all(first, limited, 'Killed process 7 (stress)'), []);
  assert.deepEqual(all(first, 'Killed process 7 (stress)'), found);
  assert.deepEqual(all(global, last), [], 'without a beginning');
  assert.deepEqual(all(first, ofGroup, last, first, global, last), found);
});

test('the resolver of the node fits into those of pods', () => {
  const fault = (text: string, domain = 'cluster.local') => resolverFault('/etc/resolv.conf', text, domain);
  const domains = (count: number, length = 3) =>
    `nameserver 1.1.1.1\nsearch ${Array.from({ length: count }, () => 'a'.repeat(length)).join(' ')}\n`;
  assert.equal(fault(domains(29)), undefined);
  const tooMany = (most: number) =>
    `Resolv.conf file '/etc/resolv.conf' contains search line consisting of more than ${most} domains!`;
  assert.equal(fault(domains(30)), tooMany(29));
  assert.equal(fault(domains(32), ''), undefined);
  assert.equal(fault(domains(33), ''), tooMany(32));
  assert.match(
    fault(domains(1, 254))!,
    /^Resolv\.conf file "\/etc\/resolv\.conf" .* more than allowed 253 chars!$/,
  );
  assert.equal(fault(domains(8, 253)), undefined);
  assert.match(fault(domains(9, 253))!, /search line which length is more than allowed 2048 chars!$/);
  assert.equal(fault('nameserver\n'), 'nameserver list is empty ');
});

test('a node tells of cgroup v1, its resolver, and the kernel log', { timeout: 20_000 }, async (t) => {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-warnings-'));
  t.after(() => rm(folder, { recursive: true, force: true }));
  const file = join(folder, 'kernel.log');
  await writeFile(file, `${[first, global, last].join('\n')}\n`);
  const told: [string, string][] = [];
  const all = Promise.withResolvers<void>();
  const close = startNodeWarnings({
    cgroupVersion: 1,
    resolvConf: join(folder, 'none'),
    clusterDomain: '',
    warn(reason, message) {
      told.push([reason, message]);
      if (told.length === 3) all.resolve();
    },
    log,
    kernelLog: ['tail', '-n', '+1', '-f', file],
  });
  t.after(close);
  // What is followed does not keep a process up.
  const up = setInterval(() => {}, 1000);
  t.after(() => clearInterval(up));
  await all.promise;
  const messages = Object.fromEntries(told);
  assert.match(messages['CgroupV1']!, /^cgroup v1 detected\. /);
  assert.match(messages['CheckLimitsForResolvConf']!, /no such file|ENOENT/);
  assert.equal(messages['SystemOOM'], 'System OOM encountered, victim process: stress, pid: 7');
});

test('a kernel log that cannot be followed is no fault', async () => {
  const told: string[] = [];
  const logged = Promise.withResolvers<void>();
  const close = startNodeWarnings({
    cgroupVersion: 2,
    resolvConf: '',
    clusterDomain: '',
    warn: (reason) => told.push(reason),
    log: { warn: () => logged.resolve() } as unknown as Logger,
    kernelLog: ['/no/such/program'],
  });
  await logged.promise;
  close();
  assert.deepEqual(told, []);
});

test('new lines of the kernel log come, and its reader ends with the process that has it', {
  skip: noKernelLog,
  timeout: 30_000,
}, async () => {
  const word = `keelson-test-${randomUUID()}`;
  const module = new URL('../../../agent/node/warnings/kernel_log.ts', import.meta.url).href;
  const script = `
    const { followKernelLog } = await import(${JSON.stringify(module)});
    const log = { warn(fields, text) { console.log('warned ' + text); } };
    followKernelLog({ log, onLine(line) { if (line.includes(${JSON.stringify(word)})) console.log('seen'); } });
    setInterval(() => {}, 1000);
  `;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const repeat = setInterval(() => void writeFile('/dev/kmsg', `<6>${word}\n`).catch(() => {}), 200);
  try {
    const said = await new Promise<string>((resolve, reject) => {
      child.stdout.setEncoding('utf8').once('data', resolve);
      child.once('error', reject);
      child.once('exit', () => resolve('it ended'));
    });
    assert.match(said, /^seen/);
    const readers = await readFile(`/proc/${child.pid}/task/${child.pid}/children`, 'utf8');
    const [reader] = readers.trim().split(' ');
    assert.ok(Number(reader) > 0);
    child.kill('SIGKILL');
    await once(child, 'exit');
    while (isAlive(Number(reader))) await setImmediate();
  } finally {
    clearInterval(repeat);
    child.kill('SIGKILL');
  }
});

function isAlive(pid: number): boolean {
  try {
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
}
