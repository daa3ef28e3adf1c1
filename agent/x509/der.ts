/** ASN.1 as certificates and their requests have it (X.690, distinguished encoding rules). Pure. */

/** One element: `tag`, the length, and `parts` as its content, of at most 65,535 bytes. */
export function der(tag: number, ...parts: readonly Buffer[]): Buffer {
  const content = Buffer.concat(parts);
  const { length } = content;
  const size =
    length < 0x80 ? [length] : length < 0x100 ? [0x81, length] : [0x82, length >> 8, length & 0xff];
  return Buffer.concat([Buffer.from([tag, ...size]), content]);
}
