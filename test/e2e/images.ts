/**
 * Stand-ins for the images that the specs name (test/utils/image/manifest.go of Kubernetes), made of Debian's programs and
 * of those that the suite's own module has.
 */

import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { makeAuthority } from '../peers/certificates.ts';
import { newBusybox, toolFiles } from '../peers/debian-programs.ts';
import type { E2ePrograms } from '../peers/e2e.ts';
import { busyboxImage as anyBusyboxImage, type BuiltImage, pauseImage, pushImage } from '../peers/image.ts';
import { nginxConfig, nginxFiles } from '../peers/nginx.ts';
import type { TarEntry } from '../peers/tar.ts';
import { servedImage } from './served_image.ts';

const suite = 'registry.k8s.io/e2e-test-images';
/** What pods of containerd are held by. */
export const sandboxImage = 'registry.k8s.io/pause:stand-in';

/** What has to be downloaded once, from Debian. */
export async function downloadForImages(signal: AbortSignal): Promise<void> {
  await nginxFiles(signal);
  await toolFiles(signal);
  await newBusybox(signal);
}

async function images(programs: E2ePrograms, signal: AbortSignal): Promise<Map<string, BuiltImage>> {
  const nginx = await nginxFiles(signal);
  const { plain, besideTools } = await newBusybox(signal);
  const busyboxImage: typeof anyBusyboxImage = (options) => anyBusyboxImage({ program: plain, ...options });
  const tools = await toolFiles(signal);
  const webServer = (mark: string) =>
    busyboxImage({
      files: [
        ...nginx,
        { path: 'etc/nginx/nginx.conf', content: nginxConfig(80) },
        { path: 'www/mark', content: mark },
      ],
      config: { Cmd: ['/usr/sbin/nginx', '-c', '/etc/nginx/nginx.conf'] },
    });
  const agnhost = [...tools, ...(await agnhostFiles(programs))];
  const agnhostImage = (mark: string) =>
    busyboxImage({
      program: besideTools,
      files: [...agnhost, { path: 'mark', content: mark }],
      config: { Entrypoint: ['/agnhost'], Cmd: ['pause'] },
    });
  const marked = (mark: string, user?: string) =>
    busyboxImage({
      files: [{ path: 'mark', content: mark }],
      config: user === undefined ? {} : { User: user },
    });
  const pause = pauseImage('3.10.2');
  return new Map([
    [`${suite}/agnhost:2.66.1`, agnhostImage('2.66.1')],
    [`${suite}/agnhost:2.55`, agnhostImage('2.55')],
    [`${suite}/busybox:1.37.0-2`, marked('busybox')],
    [`${suite}/glibc-dns-testing:2.1.1`, busyboxImage({ program: besideTools, files: tools })],
    [`${suite}/ipc-utils:1.4`, marked('ipc-utils')],
    // Of an image volume only two files are read.
    [
      `${suite}/kitten:1.8`,
      busyboxImage({
        files: [
          { path: 'data.json', content: '{"image":"kitten.jpg"}\n' },
          { path: 'etc/os-release', content: 'NAME="Alpine Linux"\n' },
        ],
      }),
    ],
    [`${suite}/nginx:1.27.0-2`, webServer('1.27')],
    [`${suite}/nginx:1.28.0-2`, webServer('1.28')],
    [
      `${suite}/nonewprivs:1.4`,
      busyboxImage({
        files: [
          { path: 'usr/local', type: 'directory' },
          { path: 'usr/local/bin', type: 'directory' },
          { path: 'usr/local/bin/nnp', fromHost: programs.nonewprivs, mode: 0o6755 },
        ],
        config: { Cmd: ['nnp'] },
      }),
    ],
    [`${suite}/nonroot:1.5`, marked('nonroot', '1234')],
    ['registry.k8s.io/pause:3.10.2', pause],
    [sandboxImage, pauseImage('sandbox')],
  ]);
}

/** As its Dockerfile has them. */
async function agnhostFiles({ agnhost }: E2ePrograms): Promise<TarEntry[]> {
  const folder = await mkdtemp(join(tmpdir(), 'keelson-test-agnhost-'));
  const authority = await makeAuthority(folder, 'agnhost');
  const pair = await authority.issue({
    file: 'localhost',
    commonName: 'localhost',
    altNames: ['DNS:localhost', 'IP:127.0.0.1'],
  });
  const [certificate, key] = [await readFile(pair.cert), await readFile(pair.key)];
  await rm(folder, { recursive: true });
  return [
    { path: 'localhost.crt', content: certificate },
    { path: 'localhost.key', content: key },
    { path: 'uploads', type: 'directory' },
    ...servedImage('pause', 'testing', pauseImage('private')),
    { path: 'agnhost', fromHost: agnhost, mode: 0o755 },
    { path: 'agnhost-2', type: 'symlink', target: 'agnhost' },
    {
      path: 'etc/passwd',
      content: `root:x:0:0:root:/root:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
user-defined-in-image:x:1000:1000::/home:/bin/sh
`,
    },
    {
      path: 'etc/group',
      content: `root:x:0:
nogroup:x:65534:
user-defined-in-image:x:1000:
group-defined-in-image:x:50000:user-defined-in-image
`,
    },
  ];
}

/** Pushes all of them to one registry, which has to answer for the hosts that their names have. Returns the names. */
export async function pushImages(
  registry: string,
  programs: E2ePrograms,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const all = await images(programs, signal);
  for (const [name, image] of all) {
    await pushImage(registry, name.slice(name.indexOf('/') + 1), image);
  }
  return [...all.keys()];
}
