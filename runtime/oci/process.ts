/** What a container's first process is given: arguments, environment, working directory. Pure. */
import type { ContainerConfig } from '../api.ts';
import { KeelsonError } from '../host/errors.ts';

/** Of the image's configuration. */
export interface ImageDefaults {
  readonly Env: readonly string[];
  readonly Entrypoint: readonly string[];
  readonly Cmd: readonly string[];
  readonly WorkingDir: string;
}

export const defaultPath = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin';

/** The rules of the CRI: `command` hides the image's both, `args` alone its cmd. */
export function processArgs(
  config: Pick<ContainerConfig, 'command' | 'args'>,
  image: Pick<ImageDefaults, 'Entrypoint' | 'Cmd'>,
): string[] {
  const { command } = config;
  let { args } = config;
  let entrypoint = command;
  if (command.length === 0) {
    if (args.length === 0) args = image.Cmd;
    entrypoint = image.Entrypoint;
  }
  const all = [...entrypoint, ...args];
  if (all.length === 0 || all[0] === '') {
    throw new KeelsonError(
      'CONTAINER_CONFIG_INVALID',
      'no command: neither the container nor its image names one',
      {
        hint: 'set "command" in the container',
      },
    );
  }
  checkSize(all, 'the command');
  const broken = all.find((arg) => arg.includes('\0'));
  if (broken !== undefined) {
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', 'an argument of the command contains a NUL byte');
  }
  return all;
}

/** Later ones win over earlier ones of the same name, as in a shell; each name stands once. */
export function environment(config: ContainerConfig, image: ImageDefaults, hostname: string): string[] {
  const values = new Map<string, string>();
  const put = (entry: string) => values.set(entry.split('=', 1)[0]!, entry);
  put(defaultPath);
  if (config.tty) put('TERM=xterm');
  put(`HOSTNAME=${hostname}`);
  for (const entry of image.Env) if (entry.includes('=')) put(entry);
  for (const { key, value } of config.envs) {
    if (key === '' || key.includes('=') || key.includes('\0') || value.includes('\0')) {
      throw new KeelsonError(
        'CONTAINER_CONFIG_INVALID',
        `${JSON.stringify(key)} cannot be the name of a variable, or its value contains a NUL byte`,
      );
    }
    put(`${key}=${value}`);
  }
  const all = [...values.values()];
  checkSize(all, 'the environment');
  return all;
}

/**
 * What no kernel takes is refused before anything starts (execve(2), "Limits on size of arguments and environment").
 * Throws CONTAINER_CONFIG_INVALID.
 */
export function checkSize(texts: readonly string[], what: string): void {
  const maxText = 128 << 10;
  const maxAll = 6 << 20;
  let all = 0;
  for (const text of texts) {
    // Each has a NUL at its end, and a pointer to it.
    const size = Buffer.byteLength(text) + 1;
    all += size + 8;
    if (size > maxText || all > maxAll) {
      throw new KeelsonError(
        'CONTAINER_CONFIG_INVALID',
        `${what} is too long: ${size > maxText ? 'one part has more than 128 KiB' : 'all of it has more than 6 MiB'}`,
        { hint: 'put long content into a file, such as a ConfigMap that is mounted' },
      );
    }
  }
}

/** Throws CONTAINER_CONFIG_INVALID for one that is not absolute. */
export function workingDir(path: string): string {
  if (path.startsWith('/') && !path.includes('\0')) return path;
  throw new KeelsonError(
    'CONTAINER_CONFIG_INVALID',
    `workingDir ${JSON.stringify(path)} is not an absolute path`,
  );
}
