/**
 * The frames of SPDY/3.1 (draft-mbelshe-httpbis-spdy-00 and the session window of 3.1), as moby/spdystream speaks
 * them. Bytes in, frames out, and back; nothing here waits or writes.
 */
import { HeaderError, type Headers, makeHeaderReader, makeHeaderWriter } from './headers.ts';

export const resetStatus = {
  PROTOCOL_ERROR: 1,
  INVALID_STREAM: 2,
  REFUSED_STREAM: 3,
  UNSUPPORTED_VERSION: 4,
  CANCEL: 5,
  INTERNAL_ERROR: 6,
  FLOW_CONTROL_ERROR: 7,
  STREAM_IN_USE: 8,
  STREAM_ALREADY_CLOSED: 9,
  FRAME_TOO_LARGE: 11,
} as const;
export const goAwayStatus = { OK: 0, PROTOCOL_ERROR: 1, INTERNAL_ERROR: 2 } as const;
/** The setting that says how many bytes may be on their way on a new stream. */
export const initialWindowSetting = 7;

export type Frame =
  | {
      readonly type: 'syn-stream';
      readonly id: number;
      readonly associated: number;
      readonly priority: number;
      readonly fin: boolean;
      readonly unidirectional: boolean;
      readonly headers: Headers;
    }
  | {
      readonly type: 'syn-reply' | 'headers';
      readonly id: number;
      readonly fin: boolean;
      readonly headers: Headers;
    }
  | { readonly type: 'reset'; readonly id: number; readonly status: number }
  | { readonly type: 'settings'; readonly values: ReadonlyMap<number, number> }
  | { readonly type: 'ping'; readonly id: number }
  | { readonly type: 'goaway'; readonly last: number; readonly status: number }
  | { readonly type: 'window'; readonly id: number; readonly delta: number }
  /** A frame that is read may come in several of these as its bytes arrive; `fin` is in the last one. */
  | { readonly type: 'data'; readonly id: number; readonly fin: boolean; readonly data: Buffer };

/** Bytes that are not SPDY/3.1. Nothing after them can be understood: the session ends. */
export class FrameError extends Error {}

const version = 3;
const types = {
  SYN_STREAM: 1,
  SYN_REPLY: 2,
  RST_STREAM: 3,
  SETTINGS: 4,
  PING: 6,
  GOAWAY: 7,
  HEADERS: 8,
  WINDOW_UPDATE: 9,
} as const;
const FIN = 1;
const UNIDIRECTIONAL = 2;
/** Of a control frame; those of real clients have about a hundred bytes. */
const largestControl = 64 << 10;
/** 24 bits. */
export const largestData = 0xffffff;
const headSize = 8;
const idMask = 0x7fffffff;

/** Returns the function that takes the next bytes and gives the frames in them. It throws FrameError. */
export function makeFrameReader(): (bytes: Buffer) => Frame[] {
  const readHeaders = makeHeaderReader();
  let rest: Buffer = Buffer.alloc(0);
  /** The data frame whose bytes are arriving. */
  let open: { id: number; fin: boolean; left: number } | undefined;
  return (bytes) => {
    const frames: Frame[] = [];
    let input = rest.length === 0 ? bytes : Buffer.concat([rest, bytes]);
    for (;;) {
      if (open !== undefined) {
        const data = input.subarray(0, open.left);
        open.left -= data.length;
        input = input.subarray(data.length);
        const fin = open.fin && open.left === 0;
        if (data.length > 0 || fin) frames.push({ type: 'data', id: open.id, fin, data });
        if (open.left > 0) break;
        open = undefined;
      }
      if (input.length < headSize) break;
      const first = input.readUInt32BE(0);
      const flags = input[4]!;
      const length = input.readUIntBE(5, 3);
      if (first < 0x80000000) {
        if (first === 0) throw new FrameError('a data frame is for the stream 0');
        open = { id: first, fin: (flags & FIN) !== 0, left: length };
        input = input.subarray(headSize);
        continue;
      }
      const type = first & 0xffff;
      if (((first >>> 16) & 0x7fff) !== version) {
        throw new FrameError(`a frame has the version ${(first >>> 16) & 0x7fff}`);
      }
      if (length > largestControl) throw new FrameError(`a control frame has ${length} bytes`);
      if (input.length < headSize + length) break;
      const frame = readControl(type, flags, input.subarray(headSize, headSize + length), readHeaders);
      if (frame !== undefined) frames.push(frame);
      input = input.subarray(headSize + length);
    }
    // A copy: a few bytes of the next frame must not hold a whole buffer of the past.
    rest = input.length === 0 ? Buffer.alloc(0) : Buffer.from(input);
    return frames;
  };
}

function readControl(
  type: number,
  flags: number,
  body: Buffer,
  readHeaders: (block: Buffer) => Headers,
): Frame | undefined {
  const need = (length: number, exact = true) => {
    if (exact ? body.length !== length : body.length < length) {
      throw new FrameError(`a control frame of the type ${type} has ${body.length} bytes`);
    }
  };
  const streamId = () => {
    const id = body.readUInt32BE(0) & idMask;
    if (id === 0) throw new FrameError(`a control frame of the type ${type} is for the stream 0`);
    return id;
  };
  const headersFrom = (at: number) => {
    try {
      return readHeaders(body.subarray(at));
    } catch (error) {
      if (error instanceof HeaderError) throw new FrameError(error.message, { cause: error });
      throw error;
    }
  };
  const fin = (flags & FIN) !== 0;
  switch (type) {
    case types.SYN_STREAM:
      need(10, false);
      return {
        type: 'syn-stream',
        id: streamId(),
        associated: body.readUInt32BE(4) & idMask,
        priority: body[8]! >> 5,
        fin,
        unidirectional: (flags & UNIDIRECTIONAL) !== 0,
        headers: headersFrom(10),
      };
    case types.SYN_REPLY:
    case types.HEADERS:
      need(4, false);
      return {
        type: type === types.SYN_REPLY ? 'syn-reply' : 'headers',
        id: streamId(),
        fin,
        headers: headersFrom(4),
      };
    case types.RST_STREAM:
      need(8);
      return { type: 'reset', id: streamId(), status: body.readUInt32BE(4) };
    case types.SETTINGS: {
      need(4, false);
      const count = body.readUInt32BE(0);
      if (count > (body.length - 4) / 8) throw new FrameError(`a settings frame claims ${count} settings`);
      const values = new Map<number, number>();
      for (let at = 4; at < 4 + count * 8; at += 8) {
        values.set(body.readUInt32BE(at) & 0xffffff, body.readUInt32BE(at + 4));
      }
      return { type: 'settings', values };
    }
    case types.PING:
      need(4);
      return { type: 'ping', id: body.readUInt32BE(0) };
    case types.GOAWAY:
      need(8);
      return { type: 'goaway', last: body.readUInt32BE(0) & idMask, status: body.readUInt32BE(4) };
    case types.WINDOW_UPDATE:
      need(8);
      return {
        type: 'window',
        id: body.readUInt32BE(0) & idMask,
        delta: body.readUInt32BE(4) & idMask,
      };
    default:
      // The draft: control frames of types that are not known are passed over.
      return undefined;
  }
}

/**
 * Returns the function that turns frames into bytes; header blocks depend on those before them. A data frame comes as
 * two buffers, since its data is not copied.
 */
export function makeFrameWriter(): (frame: Frame) => Buffer[] {
  const writeHeaders = makeHeaderWriter();
  const control = (type: number, flags: number, ...parts: Buffer[]) => {
    const head = Buffer.alloc(headSize);
    head.writeUInt32BE((0x80000000 | (version << 16) | type) >>> 0, 0);
    head[4] = flags;
    head.writeUIntBE(
      parts.reduce((sum, part) => sum + part.length, 0),
      5,
      3,
    );
    return [Buffer.concat([head, ...parts])];
  };
  const words = (...values: number[]) => {
    const bytes = Buffer.alloc(values.length * 4);
    values.forEach((value, index) => {
      bytes.writeUInt32BE(value >>> 0, index * 4);
    });
    return bytes;
  };
  return (frame) => {
    switch (frame.type) {
      case 'syn-stream':
        return control(
          types.SYN_STREAM,
          (frame.fin ? FIN : 0) | (frame.unidirectional ? UNIDIRECTIONAL : 0),
          words(frame.id, frame.associated),
          Buffer.from([frame.priority << 5, 0]),
          writeHeaders(frame.headers),
        );
      case 'syn-reply':
      case 'headers':
        return control(
          frame.type === 'headers' ? types.HEADERS : types.SYN_REPLY,
          frame.fin ? FIN : 0,
          words(frame.id),
          writeHeaders(frame.headers),
        );
      case 'reset':
        return control(types.RST_STREAM, 0, words(frame.id, frame.status));
      case 'settings':
        return control(types.SETTINGS, 0, words(frame.values.size, ...[...frame.values].flat()));
      case 'ping':
        return control(types.PING, 0, words(frame.id));
      case 'goaway':
        return control(types.GOAWAY, 0, words(frame.last, frame.status));
      case 'window':
        return control(types.WINDOW_UPDATE, 0, words(frame.id, frame.delta));
      case 'data': {
        if (frame.data.length > largestData) {
          throw new RangeError(`a data frame cannot hold ${frame.data.length} bytes`);
        }
        const head = Buffer.alloc(headSize);
        head.writeUInt32BE(frame.id, 0);
        head[4] = frame.fin ? FIN : 0;
        head.writeUIntBE(frame.data.length, 5, 3);
        return frame.data.length === 0 ? [head] : [head, frame.data];
      }
    }
  };
}
