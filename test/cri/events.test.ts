/** The event stream and readers that do not keep up. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { ContainerEvent, RuntimeService } from '../../runtime/api.ts';
import { sendEvents } from '../../runtime/cri/events.ts';
import type { WireInput } from '../../runtime/cri/wire/types.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';

const sandbox = { name: 'p', uid: 'u', namespace: 'n', attempt: 0 };

function source() {
  const listeners = new Set<(event: ContainerEvent) => void>();
  let told = 0;
  return {
    runtime: {
      containerEvents(listener: (event: ContainerEvent) => void) {
        listeners.add(listener);
        return () => listeners.delete(listener);
      },
      listPodSandbox: async () => [],
    } as unknown as RuntimeService,
    tell: () => {
      for (const listener of listeners)
        listener({ type: 'started', containerId: `${told++}`, at: 1, sandbox });
    },
    listeners,
  };
}

test('everything is sent in order, and the end of the call ends it', async () => {
  const { runtime, tell, listeners } = source();
  const call = new AbortController();
  const sent: (string | undefined)[] = [];
  const send = async (message: WireInput<'ContainerEventResponse'>) => {
    sent.push(message.containerId);
    assert.deepEqual(message.podSandboxStatus?.metadata, sandbox);
    if (sent.length === 100) call.abort(new KeelsonError('ABORTED', 'the caller cancelled'));
  };
  const done = sendEvents(runtime, { signal: call.signal, send });
  for (let count = 0; count < 100; count++) tell();
  await done;
  assert.deepEqual(
    sent,
    Array.from({ length: 100 }, (_, index) => `${index}`),
  );
  assert.equal(listeners.size, 0);
});

test('a reader that falls behind gets what was kept, then an error', async () => {
  const { runtime, tell, listeners } = source();
  let release = () => {};
  const blocked = new Promise<void>((resolve) => {
    release = resolve;
  });
  let sent = 0;
  const send = async () => {
    await blocked;
    sent++;
  };
  const done = sendEvents(runtime, { signal: new AbortController().signal, send });
  for (let count = 0; count < 10_000; count++) tell();
  release();
  await assert.rejects(done, { code: 'UNAVAILABLE' });
  assert.equal(sent, 4096);
  assert.equal(listeners.size, 0);
});

test('a reader that goes while a message waits for him is let go of', async () => {
  const { runtime, tell, listeners } = source();
  const call = new AbortController();
  const send = () =>
    new Promise<void>((_, reject) => {
      call.signal.addEventListener('abort', () => reject(call.signal.reason));
    });
  const done = sendEvents(runtime, { signal: call.signal, send });
  tell();
  call.abort(new KeelsonError('ABORTED', 'the caller cancelled'));
  await done.catch((error: unknown) => assert.equal((error as KeelsonError).code, 'ABORTED'));
  assert.equal(listeners.size, 0);
});
