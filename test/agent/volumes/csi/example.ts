/** A file system of a driver, as a claim gives it. */
import type { CsiVolume } from '../../../../agent/volumes/csi/decide.ts';

export const persistent: CsiVolume = {
  mode: 'Persistent',
  driver: 'd',
  handle: 'h',
  specName: 'pv',
  block: false,
  readOnly: false,
  fsType: 'ext4',
  accessModes: ['ReadWriteOnce'],
  mountOptions: ['noatime'],
  attributes: {},
  stageSecret: undefined,
  publishSecret: undefined,
  expandSecret: undefined,
};
