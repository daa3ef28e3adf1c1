/**
 * Stand-ins for the images that critest names, made of Debian's programs. What each must hold is read from the suite
 * (pkg/framework, pkg/validate and images of sigs.k8s.io/cri-tools).
 */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import type { CriTools } from '../peers/cri-tools.ts';
import { type BuiltImage, buildImage, busyboxImage, type ImageRunConfig, pushImage } from '../peers/image.ts';
import { nginxConfig, nginxFiles } from '../peers/nginx.ts';
import type { TarEntry } from '../peers/tar.ts';

/** What pods of containerd are held by; the suite removes `pause:3.9`, so it must be another image. */
export const sandboxImage = 'registry.k8s.io/pause:stand-in';

const busybox = '/bin/busybox';
const e2e = 'registry.k8s.io/e2e-test-images';
const staging = 'gcr.io/k8s-staging-cri-tools';

/** Names as the suite has them, without `latest`, and what answers to each. */
async function images(tools: CriTools, signal: AbortSignal): Promise<Map<string, BuiltImage>> {
  const nginx = await nginxFiles(signal);
  const webServer = (port: number) =>
    busyboxImage({
      files: [...nginx, { path: 'etc/nginx/nginx.conf', content: nginxConfig(port) }],
      config: { Cmd: ['/usr/sbin/nginx', '-c', '/etc/nginx/nginx.conf'] },
    });
  /** Images with ids of their own, so that removing one leaves the others. */
  const marked = (mark: string, config: ImageRunConfig = {}, files: readonly TarEntry[] = []) =>
    busyboxImage({ files: [...files, { path: mark, content: `${mark}\n` }], config });
  const tagged = marked('test-image-tags');
  const pause = pauseImage('3.9');
  // The suite wants the name of the program in its log.
  const httpd = ['sh', '-c', 'echo httpd starts; exec httpd -f -v -p 80 -h /www'];
  return new Map([
    [`${e2e}/busybox:1.29-2`, testBusybox()],
    [`${e2e}/nginx:1.14-2`, webServer(80)],
    [`${e2e}/httpd:2.4.39-4`, busyboxImage({ config: { Cmd: httpd } })],
    [
      `${e2e}/nonewprivs:1.3`,
      busyboxImage({
        files: [{ path: 'nonewprivs', fromHost: tools.nonewprivs, mode: 0o4755 }],
        config: { Entrypoint: ['/nonewprivs'], Cmd: [] },
      }),
    ],
    [`${staging}/hostnet-nginx-${architecture(pause)}`, webServer(12003)],
    [`${staging}/test-image-user-uid`, marked('uid', { User: '1002' })],
    [`${staging}/test-image-user-username`, marked('username', { User: 'www-data' })],
    [`${staging}/test-image-user-uid-group`, marked('uid-group', { User: '1003:users' })],
    [`${staging}/test-image-user-username-group`, marked('username-group', { User: 'www-data:100' })],
    [`${staging}/test-image-predefined-group`, predefinedGroup()],
    [`${staging}/test-image-latest`, marked('test-image-latest')],
    [`${staging}/test-image-tag:test`, marked('test-image-tag')],
    [`${staging}/test-image-tag:all`, marked('test-image-tag-all')],
    ...['1', '2', '3'].flatMap((number): [string, BuiltImage][] => [
      [`${staging}/test-image-${number}`, marked(`test-image-${number}`)],
      [`${staging}/test-image-tags:${number}`, tagged],
    ]),
    ['registry.k8s.io/pause:3.9', pause],
    ['k8s.gcr.io/pause:3.9', pause],
    [sandboxImage, pauseImage('sandbox')],
  ]);
}

/**
 * Debian's busybox has no pgrep and no ipcs, and its shell runs the applets that it has without looking for their
 * files. The suite hides `/bin/ls` and then wants the shell to fail: there ls is a file of its own, not a link, which
 * the shell does not know.
 */
function testBusybox(): BuiltImage {
  const pgrep = `for folder in /proc/[0-9]*; do
  [ "$(cat $folder/comm 2> /dev/null)" != "$1" ] || echo \${folder#/proc/}
done`;
  const ipcs = 'cat /proc/sysvipc/shm';
  return busyboxImage({
    files: [
      { path: 'bin/sh', content: shellWithoutLs(), mode: 0o755 },
      { path: 'bin/ls', fromHost: busybox, mode: 0o755 },
      ...Object.entries({ pgrep, ipcs }).map(([name, script]) => ({
        path: `bin/${name}`,
        content: `#!/bin/sh\n${script}\n`,
        mode: 0o755,
      })),
    ],
  });
}

/** busybox with another name for ls in its sorted table of applets. */
function shellWithoutLs(): Buffer {
  const applets = execFileSync(busybox, ['--list'], { encoding: 'utf8' }).trim().split('\n');
  const at = applets.indexOf('ls');
  const names = (name: string) => Buffer.from(`${applets[at - 1]}\0${name}\0${applets[at + 1]}\0`);
  const program = readFileSync(busybox);
  const table = program.indexOf(names('ls'));
  if (at < 1 || table === -1 || program.indexOf(names('ls'), table + 1) !== -1) {
    throw new Error(`${busybox} has no table of applets where ls can be found`);
  }
  names('lr').copy(program, table);
  return program;
}

const architecture = (image: BuiltImage) => image.platform.architecture;

/** Its user 1000 is in a group that only the image knows. */
function predefinedGroup(): BuiltImage {
  return busyboxImage({
    config: { User: '1000' },
    files: [
      {
        path: 'etc/passwd',
        content: 'root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home:/bin/sh\n',
      },
      {
        path: 'etc/group',
        content: 'root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n',
      },
    ],
  });
}

/** A static program that does nothing but wait. */
export function pauseImage(mark: string): BuiltImage {
  const catatonit = execFileSync('sh', ['-c', 'command -v catatonit'], { encoding: 'utf8' }).trim();
  return buildImage({
    layers: [{ files: [{ path: 'pause', fromHost: catatonit, mode: 0o755 }] }],
    config: { Entrypoint: ['/pause', '-P'], Labels: { 'test.keelson/pause': mark } },
  });
}

/**
 * Pushes all of them to one registry, which has to answer for the hosts that their names have. Returns the names; one
 * without a tag has `latest`.
 */
export async function pushImages(
  registry: string,
  tools: CriTools,
  signal: AbortSignal,
): Promise<readonly string[]> {
  const all = await images(tools, signal);
  for (const [name, image] of all) {
    const path = name.slice(name.indexOf('/') + 1);
    await pushImage(registry, path.includes(':') ? path : `${path}:latest`, image);
  }
  return [...all.keys()];
}

/** A `hosts.toml` for all registries: this one answers for them, over plain http. */
export const hostsToml = (registry: string) => `server = "http://${registry}"

[host."http://${registry}"]
capabilities = ["pull", "resolve"]
`;
