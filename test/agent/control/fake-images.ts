/** An image service whose pulls go on as the test says. */
import type { Image, ImageArchives, ImageService, LayerReport, PullProgress } from '../../../runtime/api.ts';
import { abortError, KeelsonError } from '../../../runtime/host/errors.ts';

export const digest = (digit: string) => `sha256:${digit.repeat(64)}`;

export const busybox: Image = {
  id: digest('a'),
  repoTags: ['docker.io/library/busybox:1.36', 'docker.io/library/busybox:latest'],
  repoDigests: [`docker.io/library/busybox@${digest('1')}`],
  size: 4_261_502,
  pinned: false,
};
export const app: Image = {
  id: `sha256:ab${'c'.repeat(62)}`,
  repoTags: ['registry.example:5000/team/app:v2'],
  repoDigests: [],
  size: 123_456_789,
  uid: 1000,
  pinned: true,
};
export const nameless: Image = { id: digest('f'), repoTags: [], repoDigests: [], size: 999, pinned: false };

export const layer = (digit: string, change: Partial<PullProgress> = {}): PullProgress => ({
  image: 'docker.io/library/busybox:1.36',
  digest: digest(digit),
  phase: 'waiting',
  bytes: 0,
  totalBytes: 1_000_000,
  bytesPerSecond: 0,
  ...change,
});

export type PullScript = (
  tell: (progress: PullProgress) => void,
  signal: AbortSignal,
  image: string,
) => Promise<string>;

export interface FakeImages extends ImageService, ImageArchives {
  readonly present: Image[];
  /** What was asked, in order. */
  readonly calls: unknown[][];
  script: PullScript;
  reports: LayerReport[];
}

/** Never answers until `signal` aborts. */
export function untilAborted(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    const end = () => reject(abortError(signal, 'pull'));
    if (signal.aborted) end();
    else signal.addEventListener('abort', end, { once: true });
  });
}

export function fakeImages(): FakeImages {
  const present = [busybox, app, nameless];
  const calls: unknown[][] = [];
  const find = (image: string) =>
    present.find(({ id, repoTags }) => id === image || id === `sha256:${image}` || repoTags.includes(image));
  const fake: FakeImages = {
    present,
    calls,
    script: async () => busybox.id,
    reports: [],
    listImages: async () => present,
    async imageStatus({ image }) {
      if (image.startsWith('sha256:') && image.length < 71) {
        throw new KeelsonError('IMAGE_NAME_INVALID', `${image} is no name`);
      }
      return find(image);
    },
    async pullImage({ image }, { auths, signal, onProgress } = {}) {
      calls.push(['pull', image, auths]);
      return fake.script((progress) => onProgress?.(progress), signal!, image);
    },
    async removeImage({ image }) {
      calls.push(['remove', image]);
      if (image === app.id) {
        throw new KeelsonError('FAILED_PRECONDITION', `image ${image} is used by container c1`, {
          hint: 'remove its pod first',
        });
      }
      const at = present.findIndex(({ id }) => id === image);
      if (at >= 0) present.splice(at, 1);
    },
    imageFsInfo: async () => ({ mountpoint: '/', usedBytes: 0, usedInodes: 0 }),
    async importImages(path, { pin, onProgress } = {}) {
      calls.push(['import', path, pin]);
      onProgress?.(layer('5', { phase: 'verifying' }));
      onProgress?.(layer('5', { phase: 'done', bytes: 1_000_000 }));
      return [{ ...busybox, pinned: pin ?? false }];
    },
    async exportImages(images, path, { format }) {
      calls.push(['export', images, path, format]);
    },
    async verifyImages({ repair, onLayer } = {}) {
      calls.push(['verify', repair]);
      for (const report of fake.reports) onLayer?.(report);
      return fake.reports;
    },
  };
  return fake;
}
