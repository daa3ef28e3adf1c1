/** `POST /checkpoint/{namespace}/{pod}/{container}`: the state of a container as an archive on the node. */
import { join } from 'node:path';
import type { RuntimeService } from '../../../runtime/api.ts';
import type { Clock } from '../../../runtime/host/clock.ts';
import { describe, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import type { Pod } from '../../apiserver/types.ts';
import type { Route } from '../request.ts';
import { findPod, findRunning } from './find.ts';

export interface CheckpointOptions {
  readonly runtime: Pick<RuntimeService, 'checkpointContainer' | 'listContainers' | 'listPodSandbox'>;
  /** Where the archives go: kubelet's folder `checkpoints`. */
  readonly folder: string;
}

type CheckpointRoute = Extract<Route, { readonly kind: 'checkpoint' }>;

/**
 * The answer: the path of the archive. Throws NOT_FOUND in kubelet's words, for a `timeout` (seconds) that is no number,
 * too, as there; RUNTIME_FAILED with why there is no checkpoint.
 */
export async function checkpoint(
  { runtime, folder }: CheckpointOptions,
  pods: readonly Pod[],
  clock: Clock,
  route: CheckpointRoute,
  query: URLSearchParams,
  signal: AbortSignal,
): Promise<{ readonly items: readonly string[] }> {
  const { namespace, pod: name, container } = route;
  const pod = findPod(pods, route);
  const { containers = [], initContainers = [], ephemeralContainers = [] } = pod.spec ?? {};
  if (![...containers, ...initContainers, ...ephemeralContainers].some((one) => one.name === container)) {
    throw new KeelsonError('NOT_FOUND', `container ${container} does not exist`);
  }
  // The last one counts.
  const asked = query.getAll('timeout').at(-1);
  if (asked !== undefined && !/^[+-]?\d{1,18}$/.test(asked)) {
    throw new KeelsonError('NOT_FOUND', 'cannot parse value of timeout parameter');
  }
  const time = new Date(clock.now()).toISOString().replace(/\.\d+Z$/, 'Z');
  const location = join(folder, `checkpoint-${name}_${namespace}-${container}-${time}.tar`);
  try {
    const id = await findRunning(runtime, pod, route, `container ${container} not found`);
    await runtime.checkpointContainer(id, location, Math.max(0, Number(asked ?? 0)) * 1000, signal);
  } catch (error) {
    if (isError(error, 'ABORTED')) throw error;
    const why = `checkpointing of ${namespace}/${name}/${container} failed (${describe(error)})`;
    throw new KeelsonError('RUNTIME_FAILED', why, { cause: error });
  }
  return { items: [location] };
}
