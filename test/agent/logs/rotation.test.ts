/** Rotation of container logs: which files stay, and that no line gets lost on the way. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { gunzipSync } from 'node:zlib';
import { startLogRotation } from '../../../agent/logs/rotate.ts';
import { planRotation } from '../../../agent/logs/rotation_plan.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { handClock, until } from '../pods/fakes.ts';

const start = Date.parse('2026-01-02T03:04:05Z');

test('what is kept, compressed and removed', () => {
  const plan = (names: string[], maxFiles: number) => planRotation('0.log', names, maxFiles, start);
  const rotated = '0.log.20260102-030405';
  assert.deepEqual(plan(['0.log', '1.log', '1.log.x'], 5), { remove: [], compress: [], rotated });
  assert.deepEqual(plan(['0.log', '0.log.b', '0.log.a.gz', '0.log.c.tmp'], 5), {
    remove: ['0.log.c.tmp'],
    compress: ['0.log.b'],
    rotated,
  });
  assert.deepEqual(plan(['0.log.a', '0.log.a.gz'], 5).remove, ['0.log.a'], 'compressed already');
  for (let maxFiles = 2; maxFiles < 6; maxFiles++)
    for (let count = 0; count < 7; count++) {
      const names = Array.from({ length: count }, (_, i) => `0.log.${i}${i < count - 1 ? '.gz' : ''}`);
      const { remove, compress } = plan(['0.log', ...names], maxFiles);
      const left = names.filter((name) => !remove.includes(name));
      assert.equal(left.length + 2, Math.min(count + 2, maxFiles), `${count} of ${maxFiles}`);
      assert.deepEqual(left, names.slice(count - left.length), 'the newest stay');
      assert.ok(compress.every((name) => left.includes(name)));
    }
});

test('big logs are rotated, small ones stay, and a runtime that does not reopen loses nothing', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'keelson-test-logs-'));
  const hand = handClock(start);
  /** The rotation sleeps: its round is over. */
  let sleeping = false;
  const clock = {
    ...hand,
    after(ms: number, callback: () => void) {
      sleeping = true;
      const end = () => {
        sleeping = false;
        callback();
      };
      return hand.after(ms, end);
    },
  };
  const path = join(folder, '0.log');
  const small = join(folder, '1.log');
  let fails = 0;
  let reopened = 0;
  const rotation = startLogRotation({
    runtime: {
      async reopenContainerLog() {
        reopened++;
        if (fails-- > 0) throw new KeelsonError('UNAVAILABLE', 'not now');
        writeFileSync(path, '');
      },
    },
    logs: () => [
      { id: 'big', logPath: path },
      { id: 'small', logPath: small },
    ],
    maxBytes: 10,
    maxFiles: 3,
    workers: 2,
    everyMs: 1000,
    clock,
    log: makeLogger('silent'),
  });
  t.after(async () => {
    await rotation.close();
    rmSync(folder, { recursive: true, force: true });
  });
  const next = async (text: string) => {
    const before = reopened;
    await until(() => sleeping, 'the end of the round before');
    writeFileSync(path, text);
    await clock.advance(1000);
    await until(() => reopened > before && sleeping, 'a rotation');
  };
  writeFileSync(small, 'small');
  fails = 1;
  await next('first log!');
  assert.deepEqual(readdirSync(folder).sort(), ['0.log', '1.log'], 'it is as it was');
  assert.equal(readFileSync(path, 'utf8'), 'first log!');
  await next('first log!');
  await next('second log!');
  await next('third log!!');
  const content = () =>
    readdirSync(folder)
      .sort()
      .map((name) => {
        const data = readFileSync(join(folder, name));
        return `${name.replace(/\.2026[\d-]+/, '.T')} ${name.endsWith('.gz') ? gunzipSync(data) : data}`;
      });
  assert.deepEqual(content(), ['0.log ', '0.log.T.gz second log!', '0.log.T third log!!', '1.log small']);
});
