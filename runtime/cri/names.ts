/** The enums of the wire and the words that runtime/api.ts has for them. Pure. */
import type { ContainerEvent, ContainerState, NamespaceMode, SandboxState, SecurityProfile } from '../api.ts';
import { KeelsonError } from '../host/errors.ts';
import { enums } from './wire/enums.ts';

type WireName<Enum extends keyof typeof enums> = (typeof enums)[Enum][number];

export const namespaceModes: Readonly<Record<WireName<'NamespaceMode'>, NamespaceMode>> = {
  POD: 'pod',
  CONTAINER: 'container',
  NODE: 'node',
  TARGET: 'target',
};
export const sandboxStates: Readonly<Record<WireName<'PodSandboxState'>, SandboxState>> = {
  SANDBOX_READY: 'ready',
  SANDBOX_NOTREADY: 'notready',
};
export const containerStates: Readonly<Record<WireName<'ContainerState'>, ContainerState>> = {
  CONTAINER_CREATED: 'created',
  CONTAINER_RUNNING: 'running',
  CONTAINER_EXITED: 'exited',
  CONTAINER_UNKNOWN: 'unknown',
};
export const eventTypes: Readonly<Record<WireName<'ContainerEventType'>, ContainerEvent['type']>> = {
  CONTAINER_CREATED_EVENT: 'created',
  CONTAINER_STARTED_EVENT: 'started',
  CONTAINER_STOPPED_EVENT: 'stopped',
  CONTAINER_DELETED_EVENT: 'deleted',
};
export const propagations = {
  PROPAGATION_PRIVATE: 'private',
  PROPAGATION_HOST_TO_CONTAINER: 'host-to-container',
  PROPAGATION_BIDIRECTIONAL: 'bidirectional',
} as const satisfies Readonly<Record<WireName<'MountPropagation'>, string>>;
export const protocols = { TCP: 'TCP', UDP: 'UDP', SCTP: 'SCTP' } as const satisfies Readonly<
  Record<WireName<'Protocol'>, string>
>;
export const profileTypes = {
  RuntimeDefault: 'RuntimeDefault',
  Unconfined: 'Unconfined',
  Localhost: 'Localhost',
} as const satisfies Readonly<Record<WireName<'ProfileType'>, SecurityProfile['type']>>;
export const groupPolicies = { Merge: 'merge', Strict: 'strict' } as const satisfies Readonly<
  Record<WireName<'SupplementalGroupsPolicy'>, string>
>;

/** Our word for a value of the wire. Throws INVALID_ARGUMENT for one that this version does not know. */
export function wordOf<Name extends string, Word>(
  names: Readonly<Record<Name, Word>>,
  value: Name | number,
  field: string,
): Word {
  if (typeof value === 'number') {
    throw new KeelsonError('INVALID_ARGUMENT', `${field}: this version knows no value ${value}`);
  }
  return names[value];
}

/** The other way. */
export function nameOf<Name extends string, Word>(names: Readonly<Record<Name, Word>>, word: Word): Name {
  return (Object.keys(names) as Name[]).find((name) => names[name] === word)!;
}

/** `SIGNAL_SIGRTMINPLUS3` → `SIGRTMIN+3`; undefined for "the runtime's default". Throws INVALID_ARGUMENT. */
export function signalOf(value: WireName<'Signal'> | number): string | undefined {
  if (value === 'SIGNAL_RUNTIME_DEFAULT') return undefined;
  if (typeof value === 'number') {
    throw new KeelsonError('INVALID_ARGUMENT', `stop_signal: this version knows no value ${value}`);
  }
  // An old name, which Linux has no number by.
  if (value === 'SIGNAL_SIGCLD') return 'SIGCHLD';
  return value.slice('SIGNAL_'.length).replace('PLUS', '+').replace('MINUS', '-');
}

/** `SIGRTMIN+3`, `TERM`, `15` → the name on the wire; the runtime's default for what the wire has no name for. */
export function signalNameOf(signal: string, numbers: Readonly<Record<string, number>>): WireName<'Signal'> {
  const byNumber = Object.entries(numbers).find(([, number]) => String(number) === signal)?.[0];
  const plain = (byNumber ?? signal).toUpperCase().replace(/^SIG/, '');
  const wanted = `SIGNAL_SIG${plain.replace('+', 'PLUS').replace('-', 'MINUS')}`;
  return enums.Signal.find((name) => name === wanted) ?? 'SIGNAL_RUNTIME_DEFAULT';
}
