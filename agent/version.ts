import { readFileSync } from 'node:fs';

/** keelson's own version, from package.json. */
export const version: string = JSON.parse(
  readFileSync(new URL('../package.json', import.meta.url), 'utf8'),
).version;

/** The Kubernetes release whose kubelet we behave like: what `kubeletVersion` reports. */
export const kubernetesVersion = 'v1.37.0';
