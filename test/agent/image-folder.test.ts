/** A node without a registry: its images come from the folder of archives. */
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { cp, glob, mkdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { dockerSaveNew, tarOf } from '../peers/archive.ts';
import { busyboxImage } from '../peers/image.ts';
import { startNode } from '../peers/node.ts';
import { waitFor } from '../peers/process.ts';

const skip =
  process.getuid?.() !== 0 ? 'needs root' : existsSync('/bin/busybox') ? false : 'needs busybox-static';

test('archives are imported when the node is calm, kept over a restart, and pods run from them', {
  skip,
}, async (t) => {
  const node = await startNode({ start: false, network: false });
  t.after(() => node.cleanup());
  const { stateDir, staticPodPath, folder } = node.paths;
  const tar = tarOf(dockerSaveNew([{ image: busyboxImage(), tags: ['airgap:1'] }]));
  await mkdir(join(stateDir, 'images'), { recursive: true });
  await writeFile(join(stateDir, 'images/airgap.tar'), tar);
  await node.start();
  const logged = async (text: string, times = 1) => {
    const lines = (await readFile(node.paths.logFile, 'utf8'))
      .split('\n')
      .filter((line) => line.includes(text));
    return lines.length >= times ? lines : undefined;
  };
  const { agent: daemon } = node;
  await waitFor('the import', () => logged('"image archive imported"'), { deadlineMs: 60_000, daemon });

  const pod = {
    apiVersion: 'v1',
    kind: 'Pod',
    metadata: { name: 'airgap' },
    spec: {
      hostNetwork: true,
      restartPolicy: 'Never',
      terminationGracePeriodSeconds: 0,
      containers: [
        { name: 'main', image: 'airgap:1', command: ['echo', 'it runs'], imagePullPolicy: 'IfNotPresent' },
      ],
    },
  };
  await writeFile(join(folder, 'pod.json'), JSON.stringify(pod));
  await cp(join(folder, 'pod.json'), join(staticPodPath, 'pod.json'));
  const container = join(node.paths.podLogsDir, `default_airgap-${node.name}_`);
  await waitFor(
    'the output of the pod',
    async () => {
      for await (const file of glob(`${container}*/main/0.log`)) {
        if (readFileSync(file, 'utf8').includes('it runs')) return true;
      }
    },
    { deadlineMs: 60_000, daemon },
  );

  await node.restart9();
  await writeFile(join(folder, 'second.tar'), tar);
  await rename(join(folder, 'second.tar'), join(stateDir, 'images/second.tar'));
  const lines = await waitFor('the second import', () => logged('"image archive imported"', 2), {
    deadlineMs: 60_000,
    daemon: node.agent,
  });
  assert.equal(lines.length, 2);
  assert.match(lines[1]!, /second\.tar/);
});
