/** For `keelson warm`: what else an agent loads or starts when it is first needed, so that its compiled code is kept. */
import { makeUnpackPool } from '../../images/unpack/pool.ts';
import { loadModules } from '../../runtime/cri/serve.ts';
import { systemClock } from '../../runtime/host/clock.ts';

/** Loads what is otherwise loaded when it is first needed. */
export async function warmRest(): Promise<void> {
  await Promise.all([
    loadModules(),
    import('../api/streams/serve.ts'),
    import('../api/reads/running_pods.ts'),
    import('../api/stats/make.ts'),
  ]);
}

/** Starts an unpack thread for a moment, so that its compiled code is kept as well as ours. */
export async function warmThreads(): Promise<void> {
  const pool = makeUnpackPool({ clock: systemClock });
  await pool.warm();
  await pool.close();
}
