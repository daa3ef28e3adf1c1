/** The status writer and an apiserver that does not know every field. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod, PodStatus } from '../../../agent/apiserver/types.ts';
import { makeStatusWriter } from '../../../agent/pods/status_writer.ts';
import { makePod } from './objects.ts';

test('what an older apiserver drops is not written again with every change of the object', async () => {
  const patches: { status: PodStatus }[] = [];
  let server: Pod = makePod();
  const answers: (() => void)[] = [];
  const writer = makeStatusWriter({
    client: {
      async patch(_path: string, _type: string, body: { status: PodStatus }) {
        patches.push(body);
        const { ephemeralContainerStatuses: _dropped, ...kept } = body.status;
        const resourceVersion = String(Number(server.metadata!.resourceVersion) + 1);
        server = {
          ...server,
          metadata: { ...server.metadata, resourceVersion },
          status: { ...server.status, ...kept },
        };
        return server;
      },
    } as never,
    log: { warn: (_: object, text: string) => assert.fail(text) } as never,
    clock: { now: () => 0, after: () => () => {} } as never,
    random: () => 0,
    onWritten: () => answers.shift()?.(),
  });
  const written = () => new Promise<void>((resolve) => answers.push(resolve));
  const status = (phase: string): PodStatus => ({
    phase,
    ephemeralContainerStatuses: [{ name: 'e', image: '', imageID: '', ready: false, restartCount: 0 }],
  });
  const first = written();
  writer.submit(server, status('Running'));
  await first;
  // Somebody labels the pod: nothing of ours has changed.
  server = { ...server, metadata: { ...server.metadata, labels: { a: 'b' }, resourceVersion: '9' } };
  writer.seen(server);
  const second = written();
  writer.submit(server, status('Failed'));
  await second;
  assert.deepEqual(
    patches.map((patch) => patch.status),
    [status('Running'), { phase: 'Failed' }],
  );
  // What somebody else takes back is written again.
  server = {
    ...server,
    metadata: { ...server.metadata, resourceVersion: '20' },
    status: { ...server.status, phase: 'Running' },
  };
  const third = written();
  writer.seen(server);
  await third;
  assert.deepEqual(patches.at(-1)?.status, { phase: 'Failed' });
  await writer.close();
});
