/** A process that sets pods' volumes up and tears them down until it is killed. Argument: the kubelet folder. */
import { makeVolumes } from '../../../agent/volumes/manager.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { makeLogger } from '../../../runtime/host/log.ts';
import { churned, fakeClient, fakeObjects } from './cluster.ts';

const objects = fakeObjects();
const volumes = makeVolumes({
  kubeletDir: process.argv[2]!,
  client: fakeClient(systemClock),
  objects,
  nodeName: 'node',
  log: makeLogger('silent'),
  clock: systemClock,
});
for (let round = 0; ; round++) {
  objects.configmaps.set('ns/kube-root-ca.crt', { data: { 'ca.crt': `CERTIFICATE ${round}` } });
  await volumes.setUp(churned);
  process.stdout.write('.');
  if (round % 3 === 2) await volumes.tearDown(churned.metadata!.uid!);
}
