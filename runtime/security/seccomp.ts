/** The seccomp filter of a container: RuntimeDefault, made here, or a profile of the node's administrator. */
import { open } from 'node:fs/promises';
import { release } from 'node:os';
import type { SecurityProfile } from '../api.ts';
import { errnoOf, KeelsonError } from '../host/errors.ts';
import {
  allowedCalls,
  allowedPersonalities,
  architectures,
  callsByArchitecture,
  callsByCapability,
  tracingCalls,
} from './syscalls.ts';

export interface SeccompArgument {
  readonly index: number;
  readonly value: number;
  readonly valueTwo?: number;
  readonly op: string;
}

export interface SeccompRule {
  readonly names: readonly string[];
  readonly action: string;
  readonly errnoRet?: number;
  readonly args?: readonly SeccompArgument[];
}

/** runtime-spec config-linux.md, `linux.seccomp`. */
export interface OciSeccomp {
  readonly defaultAction: string;
  readonly defaultErrnoRet?: number;
  readonly architectures?: readonly string[];
  readonly flags?: readonly string[];
  readonly syscalls?: readonly SeccompRule[];
}

/** What rules may depend on. */
export interface SeccompSubject {
  /** The bounding set, with CAP_. */
  readonly capabilities: readonly string[];
  /** As process.arch. */
  readonly arch: string;
  /** As uname -r. */
  readonly kernel: string;
}

const AF_VSOCK = 40;
const ENOSYS = 38;
/** CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET. */
const newNamespaces = 0x7e020000;
const maxProfileBytes = 1 << 20;

/** Pure. */
export function defaultSeccomp({ capabilities, arch }: SeccompSubject): OciSeccomp {
  const allow = (names: readonly string[], args: readonly SeccompArgument[] = []): SeccompRule => ({
    names,
    action: 'SCMP_ACT_ALLOW',
    args,
  });
  const granted = capabilities.flatMap((name) => callsByCapability[name] ?? []);
  const rules = [
    allow([...new Set([...allowedCalls, ...tracingCalls, ...(callsByArchitecture[arch] ?? []), ...granted])]),
    // A socket to the hypervisor belongs to the node.
    allow(['socket'], [{ index: 0, value: AF_VSOCK, op: 'SCMP_CMP_NE' }]),
    ...allowedPersonalities.map((value) => allow(['personality'], [{ index: 0, value, op: 'SCMP_CMP_EQ' }])),
  ];
  if (!capabilities.includes('CAP_SYS_ADMIN')) {
    // The kernels of s390 take clone's arguments in another order.
    const index = arch === 's390x' ? 1 : 0;
    rules.push(
      allow(['clone'], [{ index, value: newNamespaces, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' }]),
      // Its flags lie in memory, where a filter cannot look; ENOSYS makes libc take clone instead.
      { names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: ENOSYS },
    );
  }
  return {
    defaultAction: 'SCMP_ACT_ERRNO',
    architectures: architectures[arch] ?? [],
    syscalls: rules,
  };
}

const actions = /^SCMP_ACT_(KILL|KILL_PROCESS|KILL_THREAD|TRAP|ERRNO|TRACE|ALLOW|LOG)$/;
const operators = /^SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)$/;

type Fields = Readonly<Record<string, unknown>>;

/**
 * A profile in runtime-spec's form, or in Docker's (`archMap`, `includes`, `excludes`), for `subject`. Fields that are
 * not known are left out. Pure. Throws CONTAINER_CONFIG_INVALID that names `source`.
 */
export function parseSeccomp(text: string, source: string, subject: SeccompSubject): OciSeccomp {
  const fail = (why: string) =>
    new KeelsonError('CONTAINER_CONFIG_INVALID', `seccomp profile ${source}: ${why}`);
  const isFields = (value: unknown): value is Fields =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  const texts = (value: unknown, field: string): string[] => {
    if (value === undefined || value === null) return [];
    if (Array.isArray(value) && value.every((entry) => typeof entry === 'string')) return value;
    throw fail(`${field} is not a list of texts`);
  };
  const list = (value: unknown, field: string): Fields[] => {
    if (value === undefined || value === null) return [];
    if (Array.isArray(value) && value.every(isFields)) return value;
    throw fail(`${field} is not a list of objects`);
  };
  const whole = (value: unknown, field: string): number | undefined => {
    if (value === undefined || value === null) return undefined;
    // Masks of 64 bits may be beyond what a number holds exactly; JSON.parse has rounded them by now.
    if (
      typeof value === 'number' &&
      Number.isInteger(value) &&
      value >= 0 &&
      value <= Number.MAX_SAFE_INTEGER
    ) {
      return value;
    }
    throw fail(`${field} is not a whole number up to 2^53`);
  };
  const action = (value: unknown, field: string): string => {
    if (typeof value === 'string' && actions.test(value)) return value;
    throw fail(`${field} ${JSON.stringify(value)} is no action of seccomp that a container can have`);
  };
  let profile: unknown;
  try {
    profile = JSON.parse(text);
  } catch (error) {
    throw fail(`it is not JSON (${error instanceof Error ? error.message : 'broken'})`);
  }
  if (!isFields(profile)) throw fail('it is not a JSON object');
  const applies = (rule: Fields): boolean => {
    const includes = isFields(rule['includes']) ? rule['includes'] : {};
    const excludes = isFields(rule['excludes']) ? rule['excludes'] : {};
    const ours = [subject.arch, goNames[subject.arch] ?? subject.arch];
    const holds = (caps: unknown) => texts(caps, 'caps').map((name) => subject.capabilities.includes(name));
    const here = (arches: unknown) => texts(arches, 'arches').some((name) => ours.includes(name));
    if (holds(includes['caps']).includes(false) || holds(excludes['caps']).includes(true)) return false;
    if (texts(includes['arches'], 'arches').length > 0 && !here(includes['arches'])) return false;
    if (here(excludes['arches'])) return false;
    const since = includes['minKernel'];
    if (typeof since === 'string' && olderThan(subject.kernel, since)) return false;
    const until = excludes['minKernel'];
    return !(typeof until === 'string' && !olderThan(subject.kernel, until));
  };
  const rules = list(profile['syscalls'], 'syscalls')
    .filter(applies)
    .map((rule, index): SeccompRule => {
      const at = `syscalls[${index}]`;
      const single = rule['name'] === undefined ? [] : texts([rule['name']], `${at}.name`);
      const names = [...single, ...texts(rule['names'], `${at}.names`)];
      if (names.length === 0) throw fail(`${at} names no system call`);
      const args = list(rule['args'], `${at}.args`).map((arg): SeccompArgument => {
        const op = arg['op'];
        if (typeof op !== 'string' || !operators.test(op))
          throw fail(`${at}: ${JSON.stringify(op)} is no operator`);
        const place = whole(arg['index'], `${at}.args.index`) ?? 0;
        if (place > 5) throw fail(`${at}: system calls have six arguments, there is no index ${place}`);
        return {
          index: place,
          value: whole(arg['value'], `${at}.args.value`) ?? 0,
          valueTwo: whole(arg['valueTwo'], `${at}.args.valueTwo`),
          op,
        };
      });
      return {
        names,
        action: action(rule['action'], `${at}.action`),
        errnoRet: whole(rule['errnoRet'], `${at}.errnoRet`),
        args,
      };
    });
  const mapped = list(profile['archMap'], 'archMap').find(
    ({ architecture }) => architecture === architectures[subject.arch]?.[0],
  );
  const given = texts(profile['architectures'], 'architectures');
  const found =
    mapped === undefined || given.length > 0
      ? given
      : [String(mapped['architecture']), ...texts(mapped['subArchitectures'], 'subArchitectures')];
  return {
    defaultAction: action(profile['defaultAction'], 'defaultAction'),
    defaultErrnoRet: whole(profile['defaultErrnoRet'], 'defaultErrnoRet'),
    architectures: found,
    flags: texts(profile['flags'], 'flags'),
    syscalls: rules,
  };
}

/** Names of process.arch to those of Docker's profiles. */
const goNames: Readonly<Record<string, string>> = { x64: 'amd64', ppc64: 'ppc64le' };

function olderThan(kernel: string, wanted: string): boolean {
  const [a = 0, b = 0] = kernel.split('.').map((part) => Number.parseInt(part, 10));
  const [c = 0, d = 0] = wanted.split('.').map((part) => Number.parseInt(part, 10));
  return a < c || (a === c && b < d);
}

/**
 * The filter for a security context; undefined: none. Throws CONTAINER_CONFIG_INVALID for a profile that cannot be read or
 * is none, and where the runtime was built without seccomp.
 */
export async function seccompFor(
  profile: SecurityProfile | undefined,
  options: {
    readonly privileged: boolean;
    /** With CAP_. */
    readonly capabilities: readonly string[];
    /** The runtime can filter; undefined where it does not say. */
    readonly supported: boolean | undefined;
  },
): Promise<OciSeccomp | undefined> {
  if (options.privileged || profile === undefined || profile.type === 'Unconfined') return undefined;
  if (options.supported === false) {
    throw new KeelsonError(
      'CONTAINER_CONFIG_INVALID',
      `a seccomp profile (${profile.type}) is wanted, but the OCI runtime was built without seccomp`,
      { hint: 'install a runc or crun with seccomp, or set the seccomp profile to Unconfined' },
    );
  }
  const subject = { capabilities: options.capabilities, arch: process.arch, kernel: release() };
  if (profile.type === 'RuntimeDefault') return defaultSeccomp(subject);
  const path = (profile.localhostRef ?? '').replace(/^localhost\//, '');
  if (!path.startsWith('/') || path.includes('\0')) {
    throw new KeelsonError(
      'CONTAINER_CONFIG_INVALID',
      `seccomp profile ${JSON.stringify(path)} is not an absolute path`,
    );
  }
  return parseSeccomp(await readProfile(path), path, subject);
}

async function readProfile(path: string): Promise<string> {
  const fail = (why: string, cause?: unknown) =>
    new KeelsonError('CONTAINER_CONFIG_INVALID', `seccomp profile ${path}: ${why}`, {
      cause,
      hint: 'put the profile on the node; pods name it relative to the seccomp folder of the kubelet',
    });
  const handle = await open(path, 'r').catch((error: unknown) => {
    throw fail(`it cannot be read (${errnoOf(error) ?? 'failed'})`, error);
  });
  try {
    const info = await handle.stat();
    if (!info.isFile()) throw fail('it is not a file');
    if (info.size > maxProfileBytes) throw fail(`it is bigger than ${maxProfileBytes} bytes`);
    return await handle.readFile('utf8');
  } finally {
    await handle.close();
  }
}
