/**
 * kubelet's plugin registration: a plugin makes a socket below `<kubelet root>/plugins_registry`, is asked who it is, and
 * is used until the socket goes. One that fails is tried again, with kubelet's waits, as long as its socket is there.
 */
import { join } from 'node:path';
import { type Clock, sleep } from '../../runtime/host/clock.ts';
import { describe } from '../../runtime/host/errors.ts';
import type { Logger } from '../../runtime/host/log.ts';
import { type PluginHandler, type Registered, register } from './registration.ts';
import { watchSockets } from './sockets.ts';

export interface RegistryOptions {
  /** kubelet's root folder. */
  readonly kubeletDir: string;
  /** By the type that a plugin says it is (`CSIPlugin`); the others are refused. */
  readonly handlers: Readonly<Record<string, PluginHandler>>;
  readonly clock: Clock;
  readonly log: Logger;
}

export interface PluginRegistry {
  /** Resolves once the sockets that were there at the start are known; they are being registered then. */
  readonly ready: Promise<void>;
  /** Ends the watch and what is under way; nothing is deregistered, as the plugins go on. */
  close(): Promise<void>;
}

const firstWaitMs = 500;
/** kubelet's: two minutes and two seconds. */
const longestWaitMs = 122_000;

/** Milliseconds before the next attempt. Pure. */
export function waitMs(failures: number): number {
  return Math.min(firstWaitMs * 2 ** Math.min(failures - 1, 10), longestWaitMs);
}

interface Known {
  /** Which socket of that path it is. */
  readonly identity: string;
  readonly stop: AbortController;
  /** Settles when nothing is done for it any more. */
  readonly work: Promise<Registered | undefined>;
}

export function makePluginRegistry({ kubeletDir, handlers, clock, log }: RegistryOptions): PluginRegistry {
  const known = new Map<string, Known>();
  /** The ends of plugins whose sockets went; a new one at the same path waits for it. */
  const ending = new Map<string, Promise<void>>();
  let closed = false;

  const keepTrying = async (
    socket: string,
    before: Promise<void> | undefined,
    signal: AbortSignal,
  ): Promise<Registered | undefined> => {
    await before;
    for (let failures = 0; ; ) {
      try {
        const registered = await register(socket, handlers, signal);
        const { name, endpoint } = registered.plugin;
        log.info({ socket, plugin: name, endpoint }, 'a plugin is registered');
        return registered;
      } catch (error) {
        if (signal.aborted) return undefined;
        failures++;
        const wait = waitMs(failures);
        log.warn(
          { err: error, socket },
          `cannot register a plugin: ${describe(error)}; again in ${wait / 1000} s`,
        );
        await sleep(clock, wait, signal).catch(() => {});
        if (signal.aborted) return undefined;
      }
    }
  };

  const end = async ({ stop, work }: Known, socket: string): Promise<void> => {
    stop.abort();
    const registered = await work;
    if (registered === undefined || closed) return;
    log.info({ socket, plugin: registered.plugin.name }, 'a plugin has gone');
    await registered.handler.deregister(registered.plugin).catch((error: unknown) => {
      log.warn({ err: error, plugin: registered.plugin.name }, 'cannot deregister a plugin');
    });
  };

  const changed = (sockets: ReadonlyMap<string, string>) => {
    if (closed) return;
    for (const [socket, one] of known) {
      if (sockets.get(socket) === one.identity) continue;
      known.delete(socket);
      const over = end(one, socket).finally(() => {
        if (ending.get(socket) === over) ending.delete(socket);
      });
      ending.set(socket, over);
    }
    for (const [socket, identity] of sockets) {
      if (known.has(socket)) continue;
      const stop = new AbortController();
      const work = keepTrying(socket, ending.get(socket), stop.signal);
      known.set(socket, { identity, stop, work });
    }
  };

  const folder = join(kubeletDir, 'plugins_registry');
  const watch = watchSockets({ folder, changed, clock, log });
  return {
    ready: watch.ready,
    async close() {
      closed = true;
      watch.close();
      for (const { stop } of known.values()) stop.abort();
      await Promise.all([...ending.values(), ...[...known.values()].map(({ work }) => work)]);
    },
  };
}
