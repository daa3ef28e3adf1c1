/**
 * Variables from a file in a volume (fileKeyRef, KEP-3721): a strict subset of shell assignments. Each is
 * `NAME='value'`, single-quoted, several lines long where need be, with a comment behind it if any.
 */
import { open, readFile, readlink, realpath } from 'node:fs/promises';
import { join } from 'node:path';
import { describe, errnoOf, KeelsonError } from '../../../runtime/host/errors.ts';
import type { PodContainer } from '../../apiserver/types.ts';

export interface FileKeyRef {
  readonly volumeName: string;
  readonly path: string;
  readonly key: string;
  readonly optional?: boolean;
}

/** The reference of a variable, if it is one to a file. */
export function fileKeyRefOf(
  variable: NonNullable<PodContainer['env']>[number] | undefined,
): FileKeyRef | undefined {
  return (variable?.valueFrom as { fileKeyRef?: FileKeyRef } | undefined)?.fileKeyRef;
}

/** Files larger than this are refused: a container wrote them, and they go into memory. */
const mostBytes = 1024 * 1024;

/** A line of the file does not read as it must, or a quote is not closed. Says on which line. */
export class EnvFileError extends Error {}

/**
 * The value of `key`; empty where the file does not have it. Reads up to the key and no further: what comes behind
 * it does not matter. Throws EnvFileError. Pure.
 */
export function parseEnvFile(text: string, key: string): string {
  // A last newline ends the last line; it does not begin another.
  const lines = text
    .replace(/\n$/, '')
    .split('\n')
    .map((line) => line.replace(/\r$/, ''));
  for (let at = 0; at < lines.length; at++) {
    const wrong = (why: string, line = at) =>
      new EnvFileError(`invalid environment variable format at line ${line + 1}: ${why}`);
    const line = lines[at]!.replace(/^[ \t]+/, '');
    if (line === '' || line.startsWith('#')) continue;
    const equals = line.indexOf('=');
    if (equals < 0) throw wrong("missing '='");
    const name = line.slice(0, equals);
    if (/^[ \t]*$/.test(name)) throw wrong('empty variable name');
    if (/[ \t]$/.test(name)) throw wrong("whitespace before '=' is not allowed");
    let rest = line.slice(equals + 1);
    if (/^[ \t]/.test(rest)) {
      // As in a shell: the variable is empty, and what follows is not its value.
      if (name === key) return '';
      continue;
    }
    if (!rest.startsWith("'")) throw wrong('value must be enclosed in single quotes');
    rest = rest.slice(1);
    const begun = at;
    let value = '';
    for (;;) {
      const end = rest.indexOf("'");
      if (end >= 0) {
        value += rest.slice(0, end);
        if (!/^[ \t]*(#|$)/.test(rest.slice(end + 1))) throw wrong('unexpected content after closing quote');
        break;
      }
      value += `${rest}\n`;
      if (++at >= lines.length) throw wrong('unclosed single quote', begun);
      rest = lines[at]!;
    }
    if (name === key) return value;
  }
  return '';
}

/**
 * The value of the reference's key in the volume at `folder`; undefined where it is optional and not there. Throws
 * CONTAINER_CONFIG_INVALID in kubelet's words.
 */
export async function readFileKey(folder: string, ref: FileKeyRef): Promise<string | undefined> {
  let value: string;
  try {
    value = parseEnvFile(await readInside(folder, ref.path), ref.key);
  } catch (error) {
    if (ref.optional && errnoOf(error) === 'ENOENT') return undefined;
    throw new KeelsonError('CONTAINER_CONFIG_INVALID', "couldn't parse env file", {
      cause: error,
      hint: `${ref.path} in volume ${ref.volumeName}: ${describe(error)}`,
    });
  }
  if (value !== '') return value;
  if (ref.optional) return undefined;
  throw new KeelsonError(
    'CONTAINER_CONFIG_INVALID',
    `environment variable key "${ref.key}" not found in file "${ref.path}" of volume "${ref.volumeName}"`,
  );
}

/** open(2) O_PATH: a handle on the place, without opening what is there. */
const O_PATH = 0o10000000;

/**
 * Reads a file below `folder`. Containers may put anything there at any moment: links that lead out, devices, FIFOs.
 * So the place is only held first, judged by where it really is and what it is, and then read through that handle.
 */
async function readInside(folder: string, path: string): Promise<string> {
  if (path.startsWith('/') || path.split('/').includes('..'))
    throw new EnvFileError('the path must be relative and stay in the volume');
  const root = await realpath(folder);
  const place = await open(join(root, path), O_PATH);
  try {
    const held = `/proc/self/fd/${place.fd}`;
    if (!(await readlink(held)).startsWith(`${root}/`))
      throw new EnvFileError('it leads out of the volume through a link');
    const facts = await place.stat();
    if (!facts.isFile()) throw new EnvFileError('it is no regular file');
    if (facts.size > mostBytes) throw new EnvFileError(`it has more than ${mostBytes} bytes`);
    return await readFile(held, 'utf8');
  } finally {
    await place.close();
  }
}
