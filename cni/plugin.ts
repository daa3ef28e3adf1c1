/** One invocation of one CNI plugin (CNI specification, section 2 and 4). */
import { constants } from 'node:fs';
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { sleep, systemClock } from '../runtime/host/clock.ts';
import { errnoOf, isError, KeelsonError } from '../runtime/host/errors.ts';
import { type ExecResult, exec } from '../runtime/host/exec.ts';
import type { Logger } from '../runtime/host/log.ts';

export type CniCommand = 'ADD' | 'DEL' | 'CHECK' | 'STATUS' | 'GC' | 'VERSION';

export interface PluginCall {
  readonly command: CniCommand;
  /** Name of the network: for messages. */
  readonly network: string;
  readonly type: string;
  /** Standard input: the plugin's configuration. */
  readonly input: string;
  readonly containerId?: string;
  /** Path; absent or empty where the namespace is gone. */
  readonly netns?: string;
  readonly ifName?: string;
  readonly args?: readonly (readonly [string, string])[];
  /** Milliseconds, where they are not the runner's. */
  readonly deadlineMs?: number;
  readonly signal?: AbortSignal;
}

export interface PluginRunner {
  /** Path of the program for `type`. Throws CNI_PLUGIN_MISSING. */
  find(type: string): Promise<string>;
  /**
   * Runs the plugin and returns its standard output. Throws CNI_PLUGIN_MISSING, ABORTED, or CNI_PLUGIN_FAILED for
   * everything that the plugin did wrong, `details.pluginCode` being the code of its error result where it gave one.
   */
  run(call: PluginCall): Promise<string>;
}

/** Package of the plugins of the CNI project in Debian and Fedora. */
export const pluginPackage = 'containernetworking-plugins';
const maxOutput = 1 << 20;
/** A plugin that is being replaced cannot be run for a moment (ETXTBSY). */
const busyTries = 5;
const busyWaitMs = 200;

/** What a plugin inherits: our environment (proxies, locale) without what is meant for this process alone. */
export function pluginEnvironment(env: NodeJS.ProcessEnv): Record<string, string> {
  const own = /^(NOTIFY_SOCKET$|LISTEN_|WATCHDOG_|NODE_|CNI_|INVOCATION_ID$|CREDENTIALS_DIRECTORY$)/;
  const kept = Object.entries(env).filter(
    (entry): entry is [string, string] => entry[1] !== undefined && !own.test(entry[0]),
  );
  return {
    PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
    ...Object.fromEntries(kept),
  };
}

/** The code and the sentence of an error result (specification, section 5, "Error"); pure. */
export function readPluginError(stdout: string): { code: number; message: string } | undefined {
  let value: unknown;
  try {
    value = JSON.parse(stdout);
  } catch {
    return undefined;
  }
  if (typeof value !== 'object' || value === null) return undefined;
  const { code, msg, details } = value as Record<string, unknown>;
  if (typeof msg !== 'string' || msg === '') return undefined;
  const more = typeof details === 'string' && details !== '' ? `; ${details}` : '';
  return { code: typeof code === 'number' ? code : 0, message: `${msg}${more}`.slice(0, 2000) };
}

export function makePluginRunner(options: {
  readonly binDirs: readonly string[];
  /** Milliseconds for one plugin. */
  readonly deadlineMs: number;
  /**
   * Milliseconds that an ADD may go on after an abort. Plugins are not made to be killed: host-local, ended between
   * making the file of an address and writing the owner into it, leaves an address that no DEL ever finds.
   */
  readonly addGraceMs: number;
  readonly env: Readonly<Record<string, string>>;
  readonly log: Logger;
}): PluginRunner {
  const { binDirs, deadlineMs, addGraceMs, env, log } = options;
  const found = new Map<string, string>();

  const find = async (type: string): Promise<string> => {
    for (const folder of binDirs) {
      const path = join(folder, type);
      try {
        await access(path, constants.X_OK);
        found.set(type, path);
        return path;
      } catch {
        // Not here: the next folder may have it.
      }
    }
    found.delete(type);
    throw new KeelsonError(
      'CNI_PLUGIN_MISSING',
      `CNI plugin ${type} is in none of the folders ${binDirs.join(', ')}`,
      {
        hint: `install the package ${pluginPackage} (or that of your network), or name the plugin's folder in the configuration`,
        details: { plugin: type },
      },
    );
  };

  const start = async (call: PluginCall): Promise<ExecResult> => {
    const path = found.get(call.type) ?? (await find(call.type));
    return exec(path, [], {
      env: {
        ...env,
        CNI_COMMAND: call.command,
        CNI_CONTAINERID: call.containerId ?? '',
        CNI_NETNS: call.netns ?? '',
        CNI_IFNAME: call.ifName ?? '',
        CNI_ARGS: (call.args ?? []).map(([key, value]) => `${key}=${value}`).join(';'),
        CNI_PATH: binDirs.join(':'),
      },
      input: call.input,
      deadlineMs: call.deadlineMs ?? deadlineMs,
      maxOutput,
      signal: call.signal,
      abortGraceMs: call.command === 'ADD' ? addGraceMs : undefined,
      okCodes: 'any',
    });
  };

  const startPatiently = async (call: PluginCall): Promise<ExecResult> => {
    for (let attempt = 1; ; attempt++) {
      try {
        return await start(call);
      } catch (error) {
        const busy = isError(error) && errnoOf(error.cause) === 'ETXTBSY';
        const moved = isError(error, 'EXEC_NOT_FOUND') && found.delete(call.type);
        if (attempt >= busyTries || !(busy || moved)) throw error;
        if (busy) await sleep(systemClock, busyWaitMs, call.signal);
      }
    }
  };

  const failed = (call: PluginCall, why: string, details: object = {}, cause?: unknown): KeelsonError =>
    new KeelsonError(
      'CNI_PLUGIN_FAILED',
      `CNI plugin ${call.type} of network ${call.network} failed (${call.command}): ${why}`,
      { cause, details: { plugin: call.type, network: call.network, command: call.command, ...details } },
    );

  return {
    find,
    async run(call) {
      let result: ExecResult;
      try {
        result = await startPatiently(call);
      } catch (error) {
        if (isError(error, 'CNI_PLUGIN_MISSING') || call.signal?.aborted) throw error;
        const why = isError(error, 'DEADLINE_EXCEEDED')
          ? `it did not end within ${call.deadlineMs ?? deadlineMs} ms and was killed`
          : isError(error, 'EXEC_OUTPUT_TOO_LARGE')
            ? `it wrote more than ${maxOutput} bytes and was killed`
            : (error as Error).message;
        throw failed(call, why, {}, error);
      }
      log.debug(
        {
          plugin: call.type,
          command: call.command,
          container: call.containerId,
          ms: Math.round(result.durationMs),
        },
        'CNI plugin ran',
      );
      const stdout = result.stdout.toString('utf8');
      if (result.code === 0) return stdout;
      const said = readPluginError(stdout);
      if (said !== undefined) throw failed(call, said.message, { pluginCode: said.code });
      const ended =
        result.code > 128
          ? `it was ended by signal ${result.code - 128}`
          : `it ended with exit code ${result.code}`;
      const noise = (result.stderr.trim() || stdout.trim()).slice(0, 1000);
      throw failed(call, noise === '' ? `${ended} and said nothing` : `${ended}: ${noise}`);
    },
  };
}
