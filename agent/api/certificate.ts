/**
 * A self-signed certificate for the node's API where none is configured: X.509 v3 (RFC 5280) in DER by hand, since
 * Node.js can make keys and signatures but no certificates. EC P-256, for servers only.
 */

import { createPrivateKey, generateKeyPair, randomBytes, sign, X509Certificate } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { isIP } from 'node:net';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { ensureFolder, writeFileAtomic } from '../../runtime/host/files.ts';
import { der } from '../x509/der.ts';

export interface ServingCertificate {
  /** PEM. */
  readonly cert: string;
  readonly key: string;
}

const dayMs = 86_400_000;
const validDays = 365;
/** A certificate with less than this left is replaced. */
const renewBeforeMs = 30 * dayMs;

const sequence = (...content: Buffer[]) => der(0x30, ...content);
const integer = (bytes: Buffer) =>
  der(0x02, bytes[0]! & 0x80 ? Buffer.concat([Buffer.alloc(1), bytes]) : bytes);
const octets = (content: Buffer) => der(0x04, content);
const text = (tag: number, value: string) => der(tag, Buffer.from(value));
const critical = der(0x01, Buffer.from([0xff]));

function oid(dotted: string): Buffer {
  const [first, second, ...rest] = dotted.split('.').map(Number) as [number, number, ...number[]];
  const bytes = [first * 40 + second];
  for (const arc of rest) {
    const digits = [arc & 0x7f];
    for (let left = arc >>> 7; left > 0; left >>>= 7) digits.unshift((left & 0x7f) | 0x80);
    bytes.push(...digits);
  }
  return der(0x06, Buffer.from(bytes));
}

/** UTCTime to 2049, GeneralizedTime after (RFC 5280, section 4.1.2.5). */
function time(ms: number): Buffer {
  const digits = `${new Date(ms).toISOString().replace(/\D/g, '').slice(0, 14)}Z`;
  const year = Number(digits.slice(0, 4));
  return year >= 1950 && year < 2050 ? text(0x17, digits.slice(2)) : text(0x18, digits);
}

/** The 4 or 16 bytes of an address. */
export function addressBytes(ip: string): Buffer {
  const plain = ip.split('%')[0]!;
  if (isIP(plain) === 4) return Buffer.from(plain.split('.').map(Number));
  // URLs write addresses in one form: hexadecimal groups with at most one gap.
  const [head, tail] = new URL(`http://[${plain}]`).hostname.slice(1, -1).split('::');
  const groups = (half: string | undefined) =>
    half ? half.split(':').map((group) => Number.parseInt(group, 16)) : [];
  const [before, after] = [groups(head), groups(tail)];
  const all = [...before, ...Array<number>(8 - before.length - after.length).fill(0), ...after];
  return Buffer.from(all.flatMap((group) => [group >> 8, group & 0xff]));
}

/** Makes a certificate for the names and addresses, valid for a year from `now` (and a day back, for clocks that lag). */
export async function makeSelfSigned(options: {
  readonly names: readonly string[];
  readonly ips: readonly string[];
  readonly now: number;
}): Promise<ServingCertificate> {
  const { names, ips, now } = options;
  const { privateKey, publicKey } = await promisify(generateKeyPair)('ec', { namedCurve: 'P-256' });
  const algorithm = sequence(oid('1.2.840.10045.4.3.2')); // ecdsa-with-SHA256
  const commonName = `${(names[0] ?? ips[0] ?? 'node').slice(0, 40)}@${Math.floor(now / 1000)}`;
  const name = sequence(der(0x31, sequence(oid('2.5.4.3'), text(0x0c, commonName))));
  const alternatives = sequence(
    ...names.map((dns) => text(0x82, dns)),
    ...ips.map((ip) => der(0x87, addressBytes(ip))),
  );
  const extensions = sequence(
    sequence(oid('2.5.29.19'), critical, octets(sequence())), // basicConstraints: no CA
    sequence(oid('2.5.29.15'), critical, octets(der(0x03, Buffer.from([7, 0x80])))), // keyUsage: digitalSignature
    sequence(oid('2.5.29.37'), octets(sequence(oid('1.3.6.1.5.5.7.3.1')))), // extKeyUsage: serverAuth
    sequence(oid('2.5.29.17'), octets(alternatives)), // subjectAltName
  );
  const serial = randomBytes(16);
  serial[0] = (serial[0]! & 0x7f) | 0x40; // Positive, and no zeroes in front.
  const body = sequence(
    der(0xa0, integer(Buffer.from([2]))), // v3
    integer(serial),
    algorithm,
    name,
    sequence(time(now - dayMs), time(now + validDays * dayMs)),
    name,
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa3, extensions),
  );
  const signature = sign('sha256', body, privateKey);
  const certificate = sequence(body, algorithm, der(0x03, Buffer.alloc(1), signature));
  const lines = certificate.toString('base64').replace(/.{64}(?=.)/g, '$&\n');
  return {
    cert: `-----BEGIN CERTIFICATE-----\n${lines}\n-----END CERTIFICATE-----\n`,
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
  };
}

/** Does it still serve: key and certificate belong together, it names all, and there is time left? */
export function isUsable(
  { cert, key }: ServingCertificate,
  wanted: { readonly names: readonly string[]; readonly ips: readonly string[]; readonly now: number },
): boolean {
  try {
    const found = new X509Certificate(cert);
    return (
      found.checkPrivateKey(createPrivateKey(key)) &&
      Date.parse(found.validFrom) <= wanted.now &&
      Date.parse(found.validTo) - wanted.now > renewBeforeMs &&
      wanted.names.every((name) => found.checkHost(name, { subject: 'never' }) !== undefined) &&
      wanted.ips.every((ip) => found.checkIP(ip.split('%')[0]!) !== undefined)
    );
  } catch {
    return false;
  }
}

/** The certificate in `<folder>/kubelet.{crt,key}` (both 0600), made anew where it does not serve any more. */
export async function selfSignedIn(
  folder: string,
  wanted: { readonly names: readonly string[]; readonly ips: readonly string[]; readonly now: number },
): Promise<ServingCertificate> {
  const [certFile, keyFile] = [join(folder, 'kubelet.crt'), join(folder, 'kubelet.key')];
  const [cert, key] = await Promise.all(
    [certFile, keyFile].map((file) => readFile(file, 'utf8').catch(() => '')),
  );
  const found = { cert: cert!, key: key! };
  if (isUsable(found, wanted)) return found;
  const made = await makeSelfSigned(wanted);
  await ensureFolder(folder);
  await writeFileAtomic(keyFile, made.key, { durable: true });
  await writeFileAtomic(certFile, made.cert, { durable: true });
  return made;
}
