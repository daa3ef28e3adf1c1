/** One HTTPS request over a connection of its own, whatever certificate the server has. Loaded for the first. */
import { type RequestOptions, request } from 'node:https';
import type { Exchanged } from './exchange.ts';

/** As `exchange`, over TLS. */
export function exchangeByTls(
  host: string,
  port: number,
  path: string,
  headers: Readonly<Record<string, string | string[]>>,
  bodyLimit: number,
  signal: AbortSignal,
): Promise<Exchanged> {
  const options: RequestOptions = {
    ...{ host, port, path, headers, signal },
    agent: false,
    insecureHTTPParser: true,
    rejectUnauthorized: false,
  };
  return new Promise((resolve, reject) => {
    const asked = request(options);
    const fail = (error: Error) => {
      asked.destroy();
      reject(signal.aborted ? signal.reason : error);
    };
    asked.once('error', fail);
    asked.once('upgrade', ({ statusCode = 0 }) => {
      asked.destroy();
      resolve({ status: statusCode, body: Buffer.alloc(0) });
    });
    asked.once('response', (response) => {
      const chunks: Buffer[] = [];
      let length = 0;
      const done = () => {
        resolve({
          status: response.statusCode ?? 0,
          location: response.headers.location,
          body: Buffer.concat(chunks).subarray(0, bodyLimit),
        });
        asked.destroy();
      };
      response.on('data', (chunk: Buffer) => {
        chunks.push(chunk);
        length += chunk.length;
        if (length >= bodyLimit) done();
      });
      response.once('end', done);
      response.once('error', fail);
    });
    asked.end();
  });
}
