/** `keelson port-forward`: ports of this machine that lead into a pod. */
import { parseArgs } from 'node:util';
import { withAgent } from '../session.ts';
import { listenForward } from '../streams/forward.ts';
import { printable, printJson } from '../terminal/text.ts';
import { sharedOptions, sharedUsage, usageError } from '../usage.ts';

export const usage = `keelson port-forward [--address ADDRESS] [--json] [--config FILE] POD [LOCAL:]REMOTE...

Lead connections to ports of this machine to ports on the loopback of a pod, until it is interrupted.

  POD             an id, its beginning, POD or NAMESPACE/POD
  [LOCAL:]REMOTE  TCP ports; LOCAL alone is the same as REMOTE, and 0, or nothing before the colon, any free one
  --address ADDRESS
                  where to listen (default: 127.0.0.1)
  --json          a line for each port that is listened on: {address, local, remote}
${sharedUsage}`;

export async function run(args: string[]): Promise<void> {
  const { values, positionals } = parseArgs({
    args,
    allowPositionals: true,
    options: { ...sharedOptions, address: { type: 'string', default: '127.0.0.1' } },
  });
  const [pod, ...texts] = positionals;
  if (pod === undefined || texts.length === 0) {
    throw usageError('keelson port-forward: POD and a port are needed', 'port-forward');
  }
  const ports = texts.map(readPorts);
  const { address } = values;
  await withAgent(values.config, async (control, signal) => {
    // Once at the beginning, to say at once what is wrong with the pod; the id stays, whoever takes the name.
    const { id } = await control.call('runtime/port-forward', { pod }, { signal });
    await listenForward({
      ports,
      address,
      signal,
      urlOf: async () => (await control.call('runtime/port-forward', { pod: id }, { signal })).url,
      onListening: (local, remote) =>
        console.log(values.json ? printJson({ address, local, remote }) : `${address}:${local} -> ${remote}`),
      onFailure: (message) => process.stderr.write(`${printable(message)}\n`),
    });
  });
}

/** Throws INVALID_ARGUMENT. Pure. */
export function readPorts(text: string): { local: number; remote: number } {
  const match = /^(?:(\d{0,5}):)?(\d{1,5})$/.exec(text);
  const remote = Number(match?.[2]);
  const local = match?.[1] === undefined ? remote : Number(match[1]);
  if (match === null || remote < 1 || remote > 65_535 || local > 65_535) {
    throw usageError(`${text} is neither a port nor LOCAL:REMOTE`, 'port-forward');
  }
  return { local, remote };
}
