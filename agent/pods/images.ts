/** Whether a container's image is to be pulled. Pure. */
import type { PodContainer } from '../apiserver/types.ts';

export type PullPolicy = 'Always' | 'IfNotPresent' | 'Never';

/** The policy, by the API's default where none is given: Always for `:latest` and for no tag. */
export function pullPolicyOf(container: Partial<PodContainer>): PullPolicy {
  const given = container.imagePullPolicy;
  if (given === 'Always' || given === 'IfNotPresent' || given === 'Never') return given;
  const image = container.image ?? '';
  if (image.includes('@')) return 'IfNotPresent';
  const tag = /:([\w][\w.-]{0,127})$/.exec(image.slice(image.lastIndexOf('/') + 1))?.[1];
  return tag === undefined || tag === 'latest' ? 'Always' : 'IfNotPresent';
}
