/** `keelson images`: what is in the store. */
import { parseArgs } from 'node:util';
import type { Image } from '../../runtime/api.ts';
import { withControl } from './session.ts';
import { formatBytes, formatTable, shortId } from './terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from './usage.ts';

export const usage = `keelson images [--digests] [--no-trunc] [--quiet | --json] [--config FILE] [FILTER]

List the images of this node. FILTER is a name or its end (busybox, library/busybox, busybox:1.36), a pattern with * for
anything, or the beginning of an id.

  --digests       also the digest of the manifest
  --no-trunc      ids and digests in full
  -q, --quiet     only the ids
  --json          one document: {"images": [{id, repoTags, repoDigests, size, pinned, uid or username}]}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: {
      ...sharedOptions,
      digests: { type: 'boolean', default: false },
      'no-trunc': { type: 'boolean', default: false },
      quiet: { type: 'boolean', short: 'q', default: false },
    },
  });
  const [filter] = positionals;
  if (positionals.length > 1) throw usageError('keelson images: one FILTER at most', 'images');
  const all = await withControl(values.config, (control, signal) =>
    control.call('images/list', {}, { signal }),
  );
  const images = filter === undefined ? all : all.filter((image) => matches(image, filter));
  const idOf = (image: Image) => (values['no-trunc'] ? image.id : shortId(image.id));
  if (values.json) console.log(JSON.stringify({ images }));
  else if (values.quiet) for (const image of images) console.log(idOf(image));
  else process.stdout.write(formatImages(images, { digests: values.digests, full: values['no-trunc'] }));
}

/** Splits `domain/path:tag` and `domain/path@digest`; the port of a domain is no tag. */
function splitName(name: string): { repository: string; tag: string; digest: string } {
  const at = name.indexOf('@');
  if (at >= 0) return { repository: name.slice(0, at), tag: '', digest: name.slice(at + 1) };
  const colon = name.indexOf(':', name.lastIndexOf('/') + 1);
  if (colon < 0) return { repository: name, tag: '', digest: '' };
  return { repository: name.slice(0, colon), tag: name.slice(colon + 1), digest: '' };
}

/** Whether `filter` speaks of `image`. Pure. */
export function matches(image: Image, filter: string): boolean {
  const beginning = /^(?:sha256:)?([0-9a-f]+)$/.exec(filter)?.[1];
  if (beginning !== undefined && image.id.startsWith(`sha256:${beginning}`)) return true;
  const pattern = filter.split('*').map((part) => part.replace(/[\\^$+?.()|[\]{}]/g, '\\$&'));
  const { tag, digest } = splitName(filter);
  const rest = tag === '' && digest === '' ? '([:@].*)?' : '';
  // A name counts from the beginning of any of its parts.
  const expression = new RegExp(`(^|/)${pattern.join('.*')}${rest}$`);
  return [...image.repoTags, ...image.repoDigests].some((name) => expression.test(name));
}

/** One row for each tag; images without one have a row for each repository, or one without a name. Pure. */
export function formatImages(images: readonly Image[], options: { digests: boolean; full: boolean }): string {
  const none = '<none>';
  const short = (digest: string) => (options.full ? digest : shortId(digest));
  const rows = images.flatMap((image) => {
    const digests = image.repoDigests.map(splitName);
    const tagged = image.repoTags.map(splitName);
    const named = new Set(tagged.map(({ repository }) => repository));
    const untagged = digests.filter(({ repository }) => !named.has(repository));
    const names = [...tagged, ...untagged];
    return (names.length === 0 ? [{ repository: none, tag: '', digest: '' }] : names).map((name) => {
      const digest = name.digest || digests.find(({ repository }) => repository === name.repository)?.digest;
      return [
        name.repository,
        name.tag || none,
        ...(options.digests ? [digest === undefined ? none : short(digest)] : []),
        short(image.id),
        formatBytes(image.size),
        image.pinned ? 'yes' : 'no',
      ];
    });
  });
  rows.sort((a, b) => compare(a[0]!, b[0]!) || compare(a[1]!, b[1]!));
  const head = ['REPOSITORY', 'TAG', ...(options.digests ? ['DIGEST'] : []), 'IMAGE ID', 'SIZE', 'PINNED'];
  return formatTable(head, rows);
}

function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}
