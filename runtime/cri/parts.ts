/** Long lists in messages of a size that every reader takes. */
import { encode } from './wire/encode.ts';
import type { MessageName, WireInput } from './wire/types.ts';

/** Readers take 16 MiB at least; smaller parts need less memory at both ends. */
const partBytes = 1 << 20;

/** Sends `items`, messages of the kind `name`, in parts of about a MiB and one item at least; an empty list sends nothing. */
export async function sendInParts<Name extends MessageName>(
  name: Name,
  items: readonly WireInput<Name>[],
  send: (part: readonly WireInput<Name>[]) => Promise<void>,
): Promise<void> {
  let part: WireInput<Name>[] = [];
  let bytes = 0;
  for (const item of items) {
    const size = encode(name, item).length;
    if (part.length > 0 && bytes + size > partBytes) {
      await send(part);
      part = [];
      bytes = 0;
    }
    part.push(item);
    bytes += size;
  }
  if (part.length > 0) await send(part);
}
