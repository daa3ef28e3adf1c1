/** A process that pulls an image into a store until it is killed. Its argument is JSON: folder, image, options. */

import { makeImages } from '../../images/service.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { openDatabase } from '../../runtime/host/database.ts';
import { makeLogger } from '../../runtime/host/log.ts';

const { folder, image, options } = JSON.parse(process.argv[2]!);
const images = await makeImages({
  db: openDatabase(`${folder}/state.db`),
  stateDir: folder,
  log: makeLogger('silent'),
  clock: systemClock,
  ...options,
});
await images.pullImage({ image });
process.stdout.write('pulled\n');
