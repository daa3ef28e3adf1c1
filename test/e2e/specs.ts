/** Which specs of Kubernetes' end-to-end suite run against keelson, and which of these may be skipped. */
import type { AllowedSkip } from '../critest/report.ts';
import type { MachineFacts } from '../critest/skips.ts';

/** Specs of features that are not on by default and yet served by a control plane of this version: a node has to have them. */
const features = [
  'EnvFiles',
  'HostAccess',
  'InPlacePodVerticalScaling',
  'PodLevelResources',
  'RuntimeHandler',
  'SupplementalGroupsPolicy',
  'UserNamespacesSupport',
];

/**
 * Ginkgo's filter of labels: what is of the node and of its volumes. Disruptive ones stop services of the machine, alpha
 * ones want feature gates of the control plane.
 */
export const labels = [
  '(sig-node || sig-storage)',
  ...['Disruptive', 'Flaky', 'Alpha', 'Deprecated', 'DRA'].map((label) => `!${label}`),
  `(Feature: isSubsetOf { ${features.join(', ')} })`,
].join(' && ');

/** Only what every node must do. */
export const conformanceLabels = `(${labels}) && (Conformance || NodeConformance)`;

/** Specs that are not run here, each with its reason: a regular expression for Ginkgo. */
export const unrunnable: readonly { readonly name: string; readonly because: string }[] = [
  {
    name: String.raw`\[Driver: (azure-disk|azure-file|cinder|vsphere|pd\.csi\.storage\.gke\.io|iscsi|nfs|nfs3)\]|LocalVolumeType: gce-localssd-scsi-fs|PersistentVolumes NFS`,
    because: 'wants a cloud or a server of its own',
  },
  {
    name: String.raw`\[Driver: csi-hostpath\]|CSI Mock|CSI mock|Volume metrics|CSIInlineVolume|CSINodes`,
    because: 'wants the images of CSI drivers and their sidecars',
  },
  { name: 'crictl|NodeProblemDetector|SSH should', because: 'logs in to the node over SSH' },
  { name: 'DynamicProvisioner External', because: 'wants the image of a provisioner' },
  { name: 'Flexvolumes', because: 'wants a driver of a kind that is deprecated' },
];

export interface PlaceFacts extends MachineFacts {
  /** The kernel makes network interfaces of the kind `dummy`. */
  readonly dummyLinks: boolean;
  /** A process here may have a lower oom_score_adj than the one that started it. */
  readonly lowersOomScores: boolean;
}

/** Guaranteed pods with a container that a resize restarts: only then its oom_score_adj is looked at. */
const guaranteedRestarts = String.raw`guaranteed qos - 1 container with resize policy .*((cpu & mem|mem) restart( \+ resize initContainers)? resizing (cpu & |only pod-level )?mem|cpu( & mem)? restart( \+ resize initContainers)? resizing (only pod-level )?cpu)`;

/** As `unrunnable`, of this machine. */
export function unrunnableHere(facts: PlaceFacts): typeof unrunnable {
  const more = [];
  if (!facts.userNamespaces) {
    const because =
      'the OCI runtime of this machine (runc older than 1.2) has no user namespaces with mapped mounts';
    more.push({ name: 'UserNamespacesSupport', because });
  }
  if (!facts.dummyLinks) {
    const because = 'the kernel of this machine has no network interfaces of the kind dummy';
    more.push({ name: 'PrivilegedPod should enable privileged commands', because });
  }
  if (!facts.lowersOomScores) {
    const because = 'this machine lets nobody lower an oom_score_adj (no CAP_SYS_RESOURCE)';
    more.push({ name: guaranteedRestarts, because });
  }
  return [...unrunnable, ...more];
}

/** What specs may skip themselves for. */
export function allowedSkips(facts: MachineFacts): readonly AllowedSkip[] {
  return [
    ...(facts.appArmor
      ? []
      : [
          {
            name: 'AppArmor',
            // It asks for the name of a distribution that has it.
            reason: /^Only supported for node OS distro/,
            count: Infinity,
            because: 'the kernel of this machine has no AppArmor',
          },
        ]),
    {
      name: '',
      reason:
        /^Only supported for providers|^Requires at least \d+ (ready )?(schedulable )?nodes?|^Requires (at least )?\d+ nodes|^Runs only when number of nodes >= \d/,
      count: Infinity,
      because: 'wants a cloud, or more than one node',
    },
    {
      name: 'sig-storage',
      reason:
        /doesn't support readOnly source$|^We don't set fsGroup on block device|^Filesystem volume case should be covered by block|doesn't work with pre-provisioned volume|doesn't support RWX/,
      count: Infinity,
      because: 'the suite does not ask that of this kind of volume',
    },
    {
      name: /PVC Protection|Default StorageClass/,
      reason: /^error finding default storageClass/,
      count: 4,
      because: 'the control plane has no default storage class, which a driver would bring',
    },
    {
      name: 'Pod Level Resources',
      reason: /^not supported on cgroupv1/,
      count: Infinity,
      because: 'the machine has version 1 of control groups, with which the suite does not try them',
    },
    {
      name: 'RuntimeClass',
      reason: /does not have E2E runtime class handler preconfigured/,
      count: 2,
      because: "looks for its handler in containerd's configuration",
    },
  ];
}
