/** The checks that the development apiserver passes, against the real kube-apiserver. */
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { checks, withApiserver } from '../peers/apiserver-conformance.ts';
import { clusterPrograms } from '../peers/binaries.ts';
import { type Cluster, startCluster } from '../peers/cluster.ts';

const programs = await clusterPrograms();
const skip = 'missing' in programs ? programs.missing : false;

test('kube-apiserver', { skip }, async (t) => {
  let cluster: Cluster | undefined;
  t.after(() => cluster?.close());
  cluster = await startCluster();
  const tls = {
    ca: await readFile(cluster.caFile),
    cert: await readFile(cluster.admin.cert),
    key: await readFile(cluster.admin.key),
  };
  for (const [name, check] of Object.entries(checks)) {
    await t.test(name, () => withApiserver(cluster!.url, tls, check));
  }
});
