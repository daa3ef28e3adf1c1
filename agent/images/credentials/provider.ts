/**
 * Credential providers: programs that are asked for the credentials of an image (kubelet's exec plugins). One run at a
 * time for one question, a deadline, a bounded answer, and answers kept for as long as the provider says.
 */
import { createHash } from 'node:crypto';
import type { Clock } from '../../../runtime/host/clock.ts';
import { describe, isError, KeelsonError } from '../../../runtime/host/errors.ts';
import { exec } from '../../../runtime/host/exec.ts';
import type { Logger } from '../../../runtime/host/log.ts';
import { abortable } from '../../apiserver/credentials.ts';
import type { ApiserverClient, KubeObject } from '../../apiserver/types.ts';
import type { TokenKey, Tokens } from '../../volumes/tokens.ts';
import { addressMatches } from './address.ts';
import type { DockerEntry } from './docker_config.ts';
import type { CredentialSet, CredentialSource } from './keyring.ts';
import { cacheKeys, parseProviderAnswer, providerRequest } from './provider_answer.ts';
import type { ProviderConfig } from './provider_config.ts';

/** For whom an image is pulled. */
export interface PullingPod {
  readonly namespace: string;
  readonly name: string;
  readonly uid: string;
  /** Empty for pods that have none, such as static ones. */
  readonly serviceAccount: string;
}

export interface ProviderFailure {
  readonly provider: string;
  /** Without what the provider wrote, which only the log has: it may not be for the pod's owner. */
  readonly message: string;
}

export interface CredentialProviders {
  /**
   * What the providers that match `repository` give, in the order of the configuration; those that fail are in
   * `failures`. Throws only ABORTED, when `signal` aborts: a run that others wait for, or may use later, goes on.
   */
  provide(
    repository: string,
    pod: PullingPod,
    signal: AbortSignal,
  ): Promise<{ readonly sets: readonly CredentialSet[]; readonly failures: readonly ProviderFailure[] }>;
  forget(podUid: string): void;
  /** Ends the runs. */
  close(): Promise<void>;
}

export interface CredentialProvidersOptions {
  readonly providers: readonly ProviderConfig[];
  /** For service accounts; none: providers that need one fail. */
  readonly client: ApiserverClient | undefined;
  readonly tokens: Pick<Tokens, 'get' | 'forget'>;
  readonly clock: Clock;
  readonly log: Logger;
  /** Default 60,000: kubelet's. */
  readonly deadlineMs?: number;
}

interface Kept {
  readonly entries: readonly DockerEntry[];
  /** Monotonic milliseconds. */
  readonly until: number;
}

/** More answers are not kept: the oldest goes. */
const mostKept = 1000;
const largestAnswer = 1 << 20;

interface Account {
  readonly source: CredentialSource;
  readonly token: string;
  readonly annotations: Readonly<Record<string, string>>;
  /** What answers for it are kept under. */
  readonly key: string;
}

export function makeCredentialProviders(options: CredentialProvidersOptions): CredentialProviders {
  const { providers, client, tokens, clock, log, deadlineMs = 60_000 } = options;
  const kept = new Map<string, Kept>();
  const running = new Map<string, Promise<readonly DockerEntry[]>>();
  const closing = new AbortController();

  /** The pod's service account, or undefined where the provider is asked without one; `skip`: it is not asked. */
  async function accountFor(
    provider: ProviderConfig,
    pod: PullingPod,
    signal: AbortSignal,
  ): Promise<Account | 'skip' | undefined> {
    const { token: wanted } = provider;
    if (wanted === undefined) return undefined;
    if (pod.serviceAccount === '') return wanted.requireServiceAccount ? 'skip' : undefined;
    if (client === undefined) {
      throw new KeelsonError('FAILED_PRECONDITION', 'a service account token needs an apiserver');
    }
    const { namespace, serviceAccount } = pod;
    const path = `/api/v1/namespaces/${encodeURIComponent(namespace)}/serviceaccounts/${encodeURIComponent(serviceAccount)}`;
    const object = await client.get<KubeObject>(path, { signal });
    const all = object.metadata?.annotations ?? {};
    const annotations: Record<string, string> = {};
    for (const name of [...wanted.requiredAnnotations, ...wanted.optionalAnnotations].sort())
      if (Object.hasOwn(all, name)) annotations[name] = all[name]!;
    // So service accounts opt in.
    if (wanted.requiredAnnotations.some((name) => !Object.hasOwn(annotations, name))) return 'skip';
    const uid = object.metadata?.uid ?? '';
    const key: TokenKey = {
      namespace,
      serviceAccount,
      podName: pod.name,
      podUid: pod.uid,
      audience: wanted.audience,
    };
    const { text: token } = await tokens.get(key, signal);
    return {
      source: { kind: 'serviceAccount', uid, namespace, name: serviceAccount },
      token,
      annotations,
      key: JSON.stringify([
        namespace,
        serviceAccount,
        uid,
        Object.entries(annotations),
        ...(wanted.cacheType === 'Token' ? [hash(token)] : []),
      ]),
    };
  }

  async function ask(
    provider: ProviderConfig,
    repository: string,
    account: Account | undefined,
  ): Promise<readonly DockerEntry[]> {
    const { name, program, apiVersion, args, env } = provider;
    const { stdout, stderr, code } = await exec(program, args, {
      env: { ...processEnv(), ...Object.fromEntries(env.map((one) => [one.name, one.value])) },
      input: providerRequest(apiVersion, repository, account),
      deadlineMs,
      maxOutput: largestAnswer,
      signal: closing.signal,
      okCodes: 'any', // The error for a bad one would show standard output, where credentials are.
    });
    if (code !== 0) {
      const said = account === undefined ? stderr : stderr.replaceAll(account.token, '…');
      log.warn(
        { provider: name, image: repository, code, stderr: said.slice(-2000) },
        'what a credential provider that failed wrote',
      );
      throw new KeelsonError('EXEC_FAILED', `exit code ${code}`);
    }
    const answer = parseProviderAnswer(stdout.toString('utf8'), apiVersion);
    // Kept longer than the token lives, or for other pods, it would be worth nothing.
    if (
      account !== undefined &&
      provider.token?.cacheType !== 'Token' &&
      answer.entries.some(({ login }) => login.password === account.token)
    ) {
      throw new KeelsonError(
        'FAILED_PRECONDITION',
        'it returned the service account token as the password, which needs the cacheType Token',
      );
    }
    const keepMs = answer.cacheMs ?? provider.defaultCacheMs;
    if (keepMs > 0) {
      const key = keptUnder(provider, cacheKeys(repository)[answer.cacheKeyType], account);
      kept.delete(key);
      kept.set(key, { entries: answer.entries, until: clock.monotonic() + keepMs });
      if (kept.size > mostKept) kept.delete(kept.keys().next().value!);
    }
    return answer.entries;
  }

  function cached(provider: ProviderConfig, repository: string, account: Account | undefined) {
    for (const where of Object.values(cacheKeys(repository))) {
      const key = keptUnder(provider, where, account);
      const found = kept.get(key);
      if (found === undefined) continue;
      if (clock.monotonic() <= found.until) return found.entries;
      kept.delete(key);
    }
    return undefined;
  }

  async function one(
    provider: ProviderConfig,
    repository: string,
    pod: PullingPod,
    signal: AbortSignal,
  ): Promise<CredentialSet | undefined> {
    const account = await accountFor(provider, pod, signal);
    if (account === 'skip') return undefined;
    const source: CredentialSource = account?.source ?? { kind: 'node' };
    const before = cached(provider, repository, account);
    if (before !== undefined) return { source, entries: before };
    const key = keptUnder(provider, repository, account) + (account === undefined ? '' : hash(account.token));
    let run = running.get(key);
    if (run === undefined) {
      run = ask(provider, repository, account).finally(() => running.delete(key));
      run.catch(() => {}); // Nobody may be waiting any more.
      running.set(key, run);
    }
    const what = `credential provider ${provider.name}`;
    return { source, entries: await abortable(run, signal, what) };
  }

  return {
    async provide(repository, pod, signal) {
      const failures: ProviderFailure[] = [];
      const matching = providers.filter(({ matchImages }) =>
        matchImages.some((pattern) => addressMatches(pattern, repository)),
      );
      const sets = await Promise.all(
        matching.map(async (provider) => {
          try {
            return await one(provider, repository, pod, signal);
          } catch (error) {
            if (signal.aborted && !isError(error, 'DEADLINE_EXCEEDED')) throw error;
            const message = describe(error);
            log.error(
              { err: error, provider: provider.name, image: repository },
              'no credentials from a provider',
            );
            failures.push({ provider: provider.name, message });
            return undefined;
          }
        }),
      );
      return { sets: sets.filter((set) => set !== undefined), failures };
    },
    forget: tokens.forget,
    async close() {
      closing.abort(new KeelsonError('ABORTED', 'the agent is stopping'));
      await Promise.allSettled(running.values());
    },
  };
}

function keptUnder(provider: ProviderConfig, where: string, account: Account | undefined): string {
  return JSON.stringify([provider.name, where, account?.key ?? '']);
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex');
}

function processEnv(): Record<string, string> {
  return Object.fromEntries(
    Object.entries(process.env).flatMap(([name, value]) => (value === undefined ? [] : [[name, value]])),
  );
}
