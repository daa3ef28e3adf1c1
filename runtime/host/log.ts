/** The log: JSON lines on standard error. Secrets are removed here once, not by each caller. */
import { type Logger as PinoLogger, pino } from 'pino';
import { describe, KeelsonError } from './errors.ts';

export type Logger = Pick<
  PinoLogger,
  'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'child' | 'level'
>;
export type LogLevel = 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'fatal' | 'silent';

const secretFields = [
  'authorization',
  'password',
  'token',
  'auth',
  'identitytoken',
  'registrytoken',
  'clientKeyData',
];

/** Makes the root logger. Give errors as `{ err }`: they become code and one line of text. */
export function makeLogger(level: LogLevel = 'info'): Logger {
  return pino(
    {
      level,
      base: null,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      redact: { paths: secretFields.flatMap((name) => [name, `*.${name}`]), censor: '[removed]' },
      serializers: {
        err: (error: unknown) =>
          error instanceof KeelsonError
            ? { code: error.code, message: describe(error) }
            : error instanceof Error
              ? { message: describe(error), stack: error.stack }
              : { message: String(error) },
      },
    },
    process.stderr,
  );
}
