/** Seeded mutations of bytes, for fuzzing. */

/** Makes the checksums of all headers right again, so that a mutation gets past them. */
export function withChecksums(tar: Buffer): Buffer {
  for (let at = 0; at + 512 <= tar.length; at += 512) {
    const block = tar.subarray(at, at + 512);
    if (block.toString('latin1', 257, 262) !== 'ustar') continue;
    block.write('        ', 148);
    let sum = 0;
    for (const byte of block) sum += byte;
    block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1');
  }
  return tar;
}

/** mulberry32: small, seeded, good enough to choose mutations. */
export function randomFrom(start: number): (below: number) => number {
  let state = start >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

/** Some bytes changed, taken out, doubled, or replaced by what parsers stumble over. */
export function mutate(bytes: Buffer, random: (below: number) => number): Buffer {
  let result = Buffer.from(bytes);
  for (let rounds = 1 + random(4); rounds > 0 && result.length > 0; rounds--) {
    const at = random(result.length);
    const length = 1 + random(Math.min(64, result.length));
    const kind = random(5);
    if (kind === 0) result[at] = random(256);
    else if (kind === 1) result = Buffer.concat([result.subarray(0, at), result.subarray(at + length)]);
    else if (kind === 2)
      result = Buffer.concat([result.subarray(0, at), result.subarray(at, at + length), result.subarray(at)]);
    else if (kind === 3)
      result.fill(
        '0123456789-./:@,"{}[]\0\xff'.charCodeAt(random(22)),
        at,
        Math.min(result.length, at + length),
      );
    else result.write(['../', '9999999999', 'null', '\\u0000', '-1', '.wh.'][random(6)]!, at, 'latin1');
  }
  return result;
}
