/** A certificate authority for tests, with the openssl command. Keys are ECDSA P-256 and readable by root only. */
import { chmod, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../../runtime/host/exec.ts';

/** Paths of PEM files. */
export interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

export interface Subject {
  /** Also the file name. */
  readonly file: string;
  readonly commonName: string;
  readonly organization?: string;
  /** `DNS:localhost`, `IP:127.0.0.1` and the like, for serving certificates. */
  readonly altNames?: readonly string[];
}

export interface Authority extends KeyPair {
  /** A certificate for serving and for clients, valid for two days. */
  issue(subject: Subject): Promise<KeyPair>;
}

/** Makes an authority whose files, and those that it issues, are in `folder`. */
export async function makeAuthority(folder: string, commonName: string): Promise<Authority> {
  // The system's openssl.cnf differs between distributions and adds extensions; ours says all there is.
  const config = join(folder, 'openssl.cnf');
  await writeFile(config, '[req]\ndistinguished_name = dn\nprompt = no\n[dn]\n');
  const request = async (subject: Subject, args: readonly string[]): Promise<KeyPair> => {
    const pair = { cert: join(folder, `${subject.file}.crt`), key: join(folder, `${subject.file}.key`) };
    const organization = subject.organization === undefined ? '' : `/O=${subject.organization}`;
    await exec(
      'openssl',
      [
        ...[
          'req',
          '-x509',
          '-config',
          config,
          '-newkey',
          'ec',
          '-pkeyopt',
          'ec_paramgen_curve:P-256',
          '-nodes',
        ],
        ...['-sha256', '-days', '2', '-subj', `${organization}/CN=${subject.commonName}`],
        ...['-keyout', pair.key, '-out', pair.cert, ...args],
      ],
      { deadlineMs: 30_000 },
    );
    await chmod(pair.key, 0o600);
    return pair;
  };
  const authority = await request({ file: 'ca', commonName }, [
    ...['-addext', 'basicConstraints=critical,CA:TRUE'],
    ...['-addext', 'keyUsage=critical,keyCertSign,cRLSign,digitalSignature'],
    ...['-addext', 'subjectKeyIdentifier=hash'],
  ]);
  return {
    ...authority,
    issue: (subject) =>
      request(subject, [
        ...['-CA', authority.cert, '-CAkey', authority.key],
        ...['-addext', 'basicConstraints=critical,CA:FALSE'],
        ...['-addext', 'keyUsage=critical,digitalSignature'],
        ...['-addext', 'extendedKeyUsage=serverAuth,clientAuth'],
        ...(subject.altNames === undefined
          ? []
          : ['-addext', `subjectAltName=${subject.altNames.join(',')}`]),
      ]),
  };
}
