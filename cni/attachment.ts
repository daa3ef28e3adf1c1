/** What callers say about an interface of a sandbox, and what plugins are told of it. */
import { KeelsonError } from '../runtime/host/errors.ts';
import type { Target } from './chain.ts';

/** Capability arguments by their conventional names (CNI CONVENTIONS.md); plugins get those that they declare. */
export interface CapabilityArgs {
  readonly portMappings?: readonly {
    readonly hostPort: number;
    readonly containerPort: number;
    readonly protocol: 'tcp' | 'udp' | 'sctp';
    readonly hostIP?: string;
  }[];
  readonly dns?: {
    readonly servers?: readonly string[];
    readonly searches?: readonly string[];
    readonly options?: readonly string[];
  };
  /** Bits per second and bits. */
  readonly bandwidth?: {
    readonly ingressRate?: number;
    readonly ingressBurst?: number;
    readonly egressRate?: number;
    readonly egressBurst?: number;
  };
  readonly ipRanges?: readonly (readonly {
    readonly subnet: string;
    readonly rangeStart?: string;
    readonly rangeEnd?: string;
    readonly gateway?: string;
  }[])[];
  readonly ips?: readonly string[];
  readonly mac?: string;
  readonly aliases?: readonly string[];
  readonly infinibandGUID?: string;
  readonly deviceID?: string;
  readonly cgroupPath?: string;
  /** All annotations of the pod: not in CONVENTIONS.md, but containerd and CRI-O give them under this name. */
  readonly 'io.kubernetes.cri.pod-annotations'?: Readonly<Record<string, string>>;
}

export interface Attachment {
  /** The sandbox's id. */
  readonly containerId: string;
  /** Path of the network namespace. */
  readonly netns: string;
  readonly ifName: 'eth0';
  readonly args: { readonly podName: string; readonly podNamespace: string; readonly podUid: string };
  readonly capabilities: CapabilityArgs;
}

/** An attachment whose namespace may be gone. */
export type Detachment = Omit<Attachment, 'netns'> & { readonly netns?: string };

export interface Attached {
  /** The sandbox's addresses without prefix lengths, primary first; at least one. */
  readonly ips: string[];
}

/** Plugins cut CNI_ARGS at `;` and `=`, and nothing can be escaped: a name with one would add arguments of its own. */
export function fitsCniArgs(value: string): boolean {
  return !/[;=\0]/.test(value);
}

/**
 * What the plugins are told of an attachment. Pure. Throws INVALID_ARGUMENT for an id that a file name cannot carry,
 * and for names that CNI_ARGS cannot.
 */
export function targetOf(attachment: Detachment): Target {
  const { containerId, ifName, netns, args, capabilities } = attachment;
  if (!/^[a-zA-Z0-9][a-zA-Z0-9_.-]*$/.test(containerId)) {
    throw new KeelsonError('INVALID_ARGUMENT', `container id ${JSON.stringify(containerId)} is not one`);
  }
  for (const [field, value] of Object.entries(args)) {
    if (fitsCniArgs(value)) continue;
    throw new KeelsonError('INVALID_ARGUMENT', `${field} ${JSON.stringify(value)} may not hold ";" or "="`);
  }
  return {
    containerId,
    ifName,
    netns,
    cniArgs: [
      ['IgnoreUnknown', '1'],
      ['K8S_POD_NAMESPACE', args.podNamespace],
      ['K8S_POD_NAME', args.podName],
      ['K8S_POD_INFRA_CONTAINER_ID', containerId],
      ['K8S_POD_UID', args.podUid],
    ],
    capabilityArgs: Object.fromEntries(
      Object.entries(capabilities).filter(([, value]) => value !== undefined),
    ),
  };
}
