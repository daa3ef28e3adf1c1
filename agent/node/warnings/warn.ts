/** What people are told of the node itself, in kubelet's words: at the start, and when its memory is at an end. */
import { readFile } from 'node:fs/promises';
import { describe } from '../../../runtime/host/errors.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { followKernelLog } from './kernel_log.ts';
import { makeOomParser, oomMessage } from './oom_lines.ts';
import { resolverFault } from './resolver.ts';

const cgroupV1 =
  'cgroup v1 detected. cgroup v1 support is deprecated and will be removed in a future release. Please migrate to cgroup v2. More information at https://git.k8s.io/enhancements/keps/sig-node/5573-remove-cgroup-v1';

export interface NodeWarningsOptions {
  readonly cgroupVersion: 1 | 2;
  /** Empty: pods get none of the node's. */
  readonly resolvConf: string;
  readonly clusterDomain: string;
  /** A warning event of the node. */
  readonly warn: (reason: string, message: string) => void;
  readonly log: Logger;
  /** As of `followKernelLog`. */
  readonly kernelLog?: readonly [string, ...string[]];
}

/** Returns what ends it. Never throws. */
export function startNodeWarnings(options: NodeWarningsOptions): () => void {
  const { cgroupVersion, resolvConf, clusterDomain, warn, log } = options;
  if (cgroupVersion === 1) warn('CgroupV1', cgroupV1);
  if (resolvConf !== '')
    readFile(resolvConf, 'utf8').then(
      (text) => {
        const fault = resolverFault(resolvConf, text, clusterDomain);
        if (fault !== undefined) warn('CheckLimitsForResolvConf', fault);
      },
      (error: unknown) => warn('CheckLimitsForResolvConf', describe(error)),
    );
  const parse = makeOomParser();
  const followed = followKernelLog({
    onLine(line) {
      const found = parse(line);
      if (found !== undefined) warn('SystemOOM', oomMessage(found));
    },
    log,
    ...(options.kernelLog === undefined ? {} : { command: options.kernelLog }),
  });
  return followed.close;
}
