/** What streaming is between its parts: the runtime that runs things, and the edges that carry the bytes. */
import type { IncomingMessage } from 'node:http';
import type { Duplex, Readable, Writable } from 'node:stream';

export interface TerminalSize {
  /** In characters; 0 leaves a side as it is. */
  readonly width: number;
  readonly height: number;
}

/**
 * The streams of a command or container. Who is given them reads and writes with back-pressure, ends the writable ones
 * when nothing more will come, and takes an error or early close of any of them as the caller's going away.
 */
export interface ProcessStreams {
  /** Absent: the process gets none (exec) or keeps what it has (attach). Its end is the end of the process' input. */
  readonly stdin?: Readable;
  readonly stdout?: Writable;
  /** With a terminal everything comes on `stdout`. */
  readonly stderr?: Writable;
  /** Calls `listener` with the newest size, if there is one already, and with every later one. */
  readonly onResize?: (listener: (size: TerminalSize) => void) => void;
}

/** Of runtime.v1.ExecRequest, AttachRequest and PortForwardRequest. */
export interface ExecRequest extends AttachRequest {
  readonly command: readonly string[];
}
export interface AttachRequest {
  readonly containerId: string;
  readonly stdin: boolean;
  readonly stdout: boolean;
  readonly stderr: boolean;
  readonly tty: boolean;
}
export interface PortForwardRequest {
  readonly podSandboxId: string;
  /** For WebSockets without a tunnel, which name ports in the request; else each connection brings its own. */
  readonly ports: readonly number[];
}

/**
 * Requests with an upgrade to SPDY/3.1 or a WebSocket. Each call answers the request, also with an error, and resolves
 * when the connection is closed; none rejects. `socket` and `head` are those of the HTTP server's `upgrade` event.
 */
export interface StreamHandlers {
  exec(request: IncomingMessage, socket: Duplex, head: Buffer, session: ExecRequest): Promise<void>;
  attach(request: IncomingMessage, socket: Duplex, head: Buffer, session: AttachRequest): Promise<void>;
  portForward(
    request: IncomingMessage,
    socket: Duplex,
    head: Buffer,
    session: PortForwardRequest,
  ): Promise<void>;
}

/** The answers of runtime.v1: URLs with a token in them that can be used once, within a minute. */
export interface StreamingUrls {
  /** Throws INVALID_ARGUMENT, NOT_FOUND, FAILED_PRECONDITION (not running), RESOURCE_EXHAUSTED (too many unused ones). */
  exec(request: ExecRequest): Promise<string>;
  attach(request: AttachRequest): Promise<string>;
  portForward(request: PortForwardRequest): Promise<string>;
}

export interface StreamingServer extends StreamingUrls {
  /** The same without a URL, for the node's own API. */
  readonly handlers: StreamHandlers;
  /** Ends all sessions. */
  close(): Promise<void>;
}
