/** Credentials for a registry, from the command line without ever standing in it. */
import type { AuthConfig } from '../../runtime/api.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';
import { usageError } from './usage.ts';

export interface CredentialSources {
  readonly creds: string | undefined;
  readonly fromStdin: boolean;
  /** All of standard input. */
  readonly readStdin: () => Promise<string>;
  /** Asks on the terminal without showing what is typed; undefined where there is no terminal. */
  readonly ask: ((question: string) => Promise<string>) | undefined;
  readonly warn: (text: string) => void;
}

/** What `--creds` and `--creds-stdin` say. Throws INVALID_ARGUMENT, without the secret. */
export async function readCredentials(sources: CredentialSources): Promise<AuthConfig | undefined> {
  const { creds, fromStdin, readStdin, ask, warn } = sources;
  if (creds === undefined && !fromStdin) return undefined;
  const colon = creds?.indexOf(':') ?? -1;
  const wrong = (why: string) => usageError(`keelson pull: ${why}`, 'pull');
  if (creds !== undefined && colon >= 0) {
    if (fromStdin) throw wrong('--creds USER:PASSWORD and --creds-stdin exclude each other');
    warn('a password on the command line can be read by every user of this machine: use --creds-stdin');
    return complete(creds.slice(0, colon), creds.slice(colon + 1), wrong);
  }
  if (fromStdin) {
    // Without its line end; a password may have spaces.
    const text = (await readStdin()).replace(/\r?\n$/, '');
    if (creds !== undefined) return complete(creds, text, wrong);
    const at = text.indexOf(':');
    if (at < 0) throw wrong('USER:PASSWORD is expected on standard input');
    return complete(text.slice(0, at), text.slice(at + 1), wrong);
  }
  if (ask === undefined) throw wrong('there is no terminal to ask for the password: use --creds-stdin');
  return complete(creds!, await ask(`Password of ${creds}: `), wrong);
}

function complete(username: string, password: string, wrong: (why: string) => Error): AuthConfig {
  if (username === '') throw wrong('the user name is missing');
  if (password === '') throw wrong('the password is empty');
  return { username, password };
}

/** All of `stream`, at most 64 KiB. */
export async function readAll(stream: NodeJS.ReadableStream): Promise<string> {
  let text = '';
  stream.setEncoding('utf8');
  for await (const chunk of stream) {
    text += chunk;
    if (text.length > 65_536)
      throw usageError('keelson pull: standard input is too long for a password', 'pull');
  }
  return text;
}

/** Asks on the terminal. The keys' echo is off meanwhile. */
export function askHidden(question: string): Promise<string> {
  const { stdin, stderr } = process;
  return new Promise((resolve, reject) => {
    let typed = '';
    stdin.setEncoding('utf8');
    stdin.setRawMode(true); // Before the question: who answers at once must not see it either.
    stderr.write(question);
    const end = () => {
      stdin.setRawMode(false);
      stdin.off('data', take);
      stdin.off('end', cancelled);
      stdin.pause();
      stderr.write('\n');
    };
    const cancelled = () => {
      end();
      reject(new KeelsonError('ABORTED', 'no password was given', { details: { signal: 'SIGINT' } }));
    };
    const take = (keys: string) => {
      for (const key of keys) {
        if (key === '\r' || key === '\n' || key === '\x04') {
          end();
          resolve(typed);
          return;
        }
        if (key === '\x03') return cancelled();
        if (key === '\x7f' || key === '\b') typed = typed.slice(0, -1);
        else if (key === '\x15') typed = '';
        else typed += key;
      }
    };
    stdin.on('data', take);
    stdin.once('end', cancelled);
    stdin.resume();
  });
}
