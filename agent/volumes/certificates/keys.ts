/** Private keys of pods, and the proof that the node has them (core/v1 PodCertificateProjection.keyType). */

import { generateKeyPair, type KeyObject, sign } from 'node:crypto';
import { promisify } from 'node:util';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { der } from '../../x509/der.ts';

export interface KeyAndProof {
  /** PKCS#8 in PEM. A secret. */
  readonly key: string;
  /** A PKCS#10 request (RFC 2986) that says nothing but which public key, signed with the private one; DER. */
  readonly proof: Buffer;
}

interface Pair {
  readonly publicKey: KeyObject;
  readonly privateKey: KeyObject;
}

/** Off the main thread: an RSA key of 4096 bits takes seconds. */
const generate = promisify(generateKeyPair);
const signAway: (digest: string | null, data: Buffer, key: KeyObject) => Promise<Buffer> = promisify(sign);

const rsa = (modulusLength: number) => (): Promise<Pair> => generate('rsa', { modulusLength });
const ec = (namedCurve: string) => (): Promise<Pair> => generate('ec', { namedCurve });

/** AlgorithmIdentifiers in DER (RFC 4055, 5758 and 8410). */
const rsaSha256 = Buffer.from('300d06092a864886f70d01010b0500', 'hex');
const ecdsaSha = (last: number) => Buffer.from(`300a06082a8648ce3d04030${last}`, 'hex');
const ed25519 = Buffer.from('300506032b6570', 'hex');

const kinds: Readonly<
  Record<
    string,
    { readonly make: () => Promise<Pair>; readonly digest: string | null; readonly algorithm: Buffer }
  >
> = {
  RSA3072: { make: rsa(3072), digest: 'sha256', algorithm: rsaSha256 },
  RSA4096: { make: rsa(4096), digest: 'sha256', algorithm: rsaSha256 },
  ECDSAP256: { make: ec('P-256'), digest: 'sha256', algorithm: ecdsaSha(2) },
  ECDSAP384: { make: ec('P-384'), digest: 'sha384', algorithm: ecdsaSha(3) },
  ECDSAP521: { make: ec('P-521'), digest: 'sha512', algorithm: ecdsaSha(4) },
  ED25519: { make: () => generate('ed25519'), digest: null, algorithm: ed25519 },
};

/** Throws VOLUME_FAILED for a type that there is not. */
export async function makeKeyAndProof(keyType: string): Promise<KeyAndProof> {
  const kind = Object.hasOwn(kinds, keyType) ? kinds[keyType] : undefined;
  if (kind === undefined)
    throw new KeelsonError('VOLUME_FAILED', `unknown key type ${JSON.stringify(keyType)}`, {
      hint: `it is one of ${Object.keys(kinds).join(', ')}`,
    });
  const { publicKey, privateKey } = await kind.make();
  const info = der(
    0x30,
    Buffer.from('020100', 'hex'), // Version 0.
    der(0x30), // Nobody's name.
    publicKey.export({ type: 'spki', format: 'der' }),
    der(0xa0), // No attributes.
  );
  const signature = await signAway(kind.digest, info, privateKey);
  return {
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }) as string,
    proof: der(0x30, info, kind.algorithm, der(0x03, Buffer.from([0]), signature)),
  };
}
