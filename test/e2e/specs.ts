/** Which specs of Kubernetes' end-to-end suite run against keelson, and which of these may be skipped. */
import type { AllowedSkip } from '../critest/report.ts';

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

/** Specs that cannot run here, each with its reason: a regular expression for Ginkgo. */
export const unrunnable: readonly { readonly name: string; readonly because: string }[] = [
  {
    name: String.raw`\[Driver: (azure-disk|azure-file|cinder|vsphere|pd\.csi\.storage\.gke\.io|iscsi|nfs|nfs3)\]`,
    because: 'wants a cloud or a server of its own',
  },
  {
    name: String.raw`\[Driver: csi-hostpath\]|CSI Mock|CSI mock`,
    because: 'wants the images of CSI drivers',
  },
  { name: 'crictl|NodeProblemDetector|SSH should', because: 'logs in to the node over SSH' },
  { name: 'Flexvolumes', because: 'removed from the kinds of volumes that keelson has' },
  { name: 'LocalVolumeType: gce-localssd-scsi-fs', because: 'wants a disk of a cloud' },
];

export const allowedSkips: readonly AllowedSkip[] = [];
