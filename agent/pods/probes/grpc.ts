/**
 * The gRPC health check (grpc.health.v1.Health/Check) over node:http2: one call with one field each way needs no gRPC
 * library in memory. Words and meaning are those of kubelet's pkg/probe/grpc.
 */
import { connect, constants, type IncomingHttpHeaders } from 'node:http2';
import { authorityOf, userAgent } from './address.ts';

export interface GrpcAnswer {
  readonly well: boolean;
  readonly output: string;
}

/** ServingStatus of grpc.health.v1. */
const serving = ['UNKNOWN', 'SERVING', 'NOT_SERVING', 'SERVICE_UNKNOWN'];
const codes = [
  ...['OK', 'Canceled', 'Unknown', 'InvalidArgument', 'DeadlineExceeded', 'NotFound', 'AlreadyExists'],
  ...[
    'PermissionDenied',
    'ResourceExhausted',
    'FailedPrecondition',
    'Aborted',
    'OutOfRange',
    'Unimplemented',
  ],
  ...['Internal', 'Unavailable', 'DataLoss', 'Unauthenticated'],
];
const answerBytes = 10 * 1024;

/** Asks once. Never rejects for a server that is not well; `signal` ends it, and that is a failure in time. */
export function grpcHealth(
  host: string,
  port: number,
  service: string,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<GrpcAnswer> {
  const authority = authorityOf(host, port);
  const within = `${timeoutMs / 1000}s`;
  return new Promise((resolve) => {
    const session = connect(`http://${authority}`);
    let connected = false;
    const end = (well: boolean, output: string) => {
      signal.removeEventListener('abort', late);
      session.destroy();
      resolve({ well, output });
    };
    const late = () =>
      end(
        false,
        connected
          ? `timeout: health rpc did not complete within ${within}`
          : `timeout: failed to connect service "${authority}" within ${within}: context deadline exceeded`,
      );
    const broken = (error: Error) =>
      end(
        false,
        connected
          ? `error: health rpc probe failed: rpc error: code = Unavailable desc = ${error.message}`
          : `error: failed to connect service at "${authority}": ${error.message}`,
      );
    if (signal.aborted) return late();
    signal.addEventListener('abort', late, { once: true });
    session.once('error', broken);
    session.once('close', () => broken(new Error('the connection was closed')));
    // The settings of the server: a TCP listener that does not speak HTTP/2 has not been reached.
    session.once('remoteSettings', () => {
      connected = true;
    });
    const stream = session.request({
      [constants.HTTP2_HEADER_METHOD]: 'POST',
      [constants.HTTP2_HEADER_PATH]: '/grpc.health.v1.Health/Check',
      [constants.HTTP2_HEADER_TE]: 'trailers',
      [constants.HTTP2_HEADER_CONTENT_TYPE]: 'application/grpc',
      [constants.HTTP2_HEADER_USER_AGENT]: userAgent('probe'),
      'grpc-timeout': `${timeoutMs}m`,
    });
    const chunks: Buffer[] = [];
    let length = 0;
    let status: IncomingHttpHeaders = {};
    const take = (headers: IncomingHttpHeaders) => {
      connected = true;
      status = { ...status, ...headers };
    };
    stream.on('response', take);
    stream.on('trailers', take);
    stream.on('data', (chunk: Buffer) => {
      length += chunk.length;
      if (length <= answerBytes) chunks.push(chunk);
    });
    stream.once('error', broken);
    stream.once('end', () => {
      const { well, output } = verdict(status, Buffer.concat(chunks), within);
      end(well, output);
    });
    stream.end(healthRequest(service));
  });
}

/** HealthCheckRequest in its frame of length: field 1, the service's name. */
export function healthRequest(service: string): Buffer {
  const name = Buffer.from(service);
  const size: number[] = [];
  for (let left = name.length; left > 0 || size.length === 0; left >>>= 7)
    size.push((left & 0x7f) | (left > 0x7f ? 0x80 : 0));
  const message = name.length === 0 ? Buffer.alloc(0) : Buffer.concat([Buffer.from([0x0a, ...size]), name]);
  const frame = Buffer.alloc(5);
  frame.writeUInt32BE(message.length, 1);
  return Buffer.concat([frame, message]);
}

/** What headers, trailers and body of an answer amount to. Pure. */
export function verdict(headers: IncomingHttpHeaders, body: Buffer, within: string): GrpcAnswer {
  const http = Number(headers[':status'] ?? 200);
  const told = headers['grpc-status'];
  const message = decoded(plain(headers['grpc-message']));
  if (told === undefined) {
    // Of a server that is none of gRPC, the HTTP status tells (gRPC's http-grpc-status-mapping).
    if (http === 404)
      return unimplemented(`unexpected HTTP status code received from server: 404 (Not Found)`);
    return {
      well: false,
      output: `error: health rpc probe failed: rpc error: code = Unknown desc = unexpected HTTP status code received from server: ${http}`,
    };
  }
  const code = Number(told);
  const name = codes[code] ?? `Code(${code})`;
  if (name === 'Unimplemented') return unimplemented(message);
  if (name === 'DeadlineExceeded')
    return { well: false, output: `timeout: health rpc did not complete within ${within}` };
  if (code !== 0)
    return {
      well: false,
      output: `error: health rpc probe failed: rpc error: code = ${name} desc = ${message}`,
    };
  const state = servingStatus(body.subarray(5));
  if (state === 1) return { well: true, output: 'service healthy' };
  return { well: false, output: `service unhealthy (responded with "${serving[state] ?? state}")` };
}

function plain(value: string | string[] | undefined): string {
  const text = Array.isArray(value) ? value.join() : (value ?? '');
  // A per cent sign that is none of percent-encoding must not break the decoding.
  return text.replace(/%(?![0-9a-f]{2})/gi, '%25');
}

function unimplemented(message: string): GrpcAnswer {
  return {
    well: false,
    output: `error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ${message}`,
  };
}

/** Field 1 (a varint) of HealthCheckResponse; its default, 0, where it is not there. */
function servingStatus(message: Buffer): number {
  return message[0] === 0x08 ? (message[1] ?? 0) : 0;
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // Percent-encoded, but not UTF-8.
  }
}
