/** What crash.test.ts kills: pulls two images that share a layer, removes one, ends in order. */
import { join } from 'node:path';
import { makeImages } from '../../../images/service.ts';
import { systemClock } from '../../../runtime/host/clock.ts';
import { openDatabase } from '../../../runtime/host/database.ts';
import { makeLogger } from '../../../runtime/host/log.ts';

const [stateDir = '', host = ''] = process.argv.slice(2);
const db = openDatabase(join(stateDir, 'state.db'));
const images = await makeImages({
  db,
  stateDir,
  log: makeLogger('silent'),
  clock: systemClock,
  keepBlobs: true,
});
await images.pullImage({ image: `${host}/a:1` });
await images.pullImage({ image: `${host}/a:2` });
await images.removeImage({ image: `${host}/a:1` });
await images.close();
db.close();
