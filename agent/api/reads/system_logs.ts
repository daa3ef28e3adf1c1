/** `/logs/`: the files below the folder of the system's logs, for people who may read them (`nodes/log`). */
import { createReadStream } from 'node:fs';
import { open, readdir } from 'node:fs/promises';
import type { ServerResponse } from 'node:http';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { errnoOf, KeelsonError } from '../../../runtime/host/errors.ts';

/** Sends a file as text, and a folder as a page of links. Throws NOT_FOUND, PERMISSION_DENIED, ABORTED. */
export async function sendSystemLog(
  response: ServerResponse,
  root: string,
  { path, folder }: { readonly path: readonly string[]; readonly folder: boolean },
  signal: AbortSignal,
): Promise<void> {
  const file = join(root, ...path);
  try {
    const handle = await open(file, 'r');
    try {
      const found = await handle.stat();
      if (found.isDirectory()) return await sendFolder(response, file, path, folder);
      // Pipes and devices would never end.
      if (!found.isFile()) throw missing();
      response.writeHead(200, {
        'content-type': 'text/plain; charset=utf-8',
        'x-content-type-options': 'nosniff',
        'content-length': String(found.size),
      });
      if (found.size === 0) return void response.end();
      const content = createReadStream('', { fd: handle.fd, autoClose: false, end: found.size - 1 });
      await pipeline(content, response, { signal });
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (['ENOENT', 'ENOTDIR', 'ENXIO', 'ELOOP', 'ENAMETOOLONG'].includes(errnoOf(error) ?? ''))
      throw missing();
    throw error;
  }
}

function missing(): KeelsonError {
  return new KeelsonError('NOT_FOUND', '404 page not found');
}

async function sendFolder(
  response: ServerResponse,
  file: string,
  path: readonly string[],
  folder: boolean,
): Promise<void> {
  if (!folder) {
    response.writeHead(301, { location: `${encodeURIComponent(path.at(-1) ?? 'logs')}/` });
    return void response.end();
  }
  const entries = await readdir(file, { withFileTypes: true });
  const lines = entries
    .map((entry) => (entry.isDirectory() ? `${entry.name}/` : entry.name))
    .sort()
    .map(
      (name) =>
        `<a href="${encodeURI(name).replaceAll('#', '%23').replaceAll('?', '%3F')}">${inHtml(name)}</a>\n`,
    );
  response.writeHead(200, {
    'content-type': 'text/html; charset=utf-8',
    'x-content-type-options': 'nosniff',
  });
  response.end(
    `<!doctype html>\n<meta name="viewport" content="width=device-width">\n<pre>\n${lines.join('')}</pre>\n`,
  );
}

function inHtml(text: string): string {
  return text.replace(/[&<>"']/g, (found) => `&#${found.charCodeAt(0)};`);
}
