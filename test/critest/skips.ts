/** The specs of critest that may be skipped on keelson; any other one that is skipped hides a gap. */
import { readFile } from 'node:fs/promises';
import { exec } from '../../runtime/host/exec.ts';
import type { AllowedSkip } from './report.ts';

/** Facts of the machine that decide about skips. */
export interface MachineFacts {
  readonly appArmor: boolean;
  /** The OCI runtime can make user namespaces with mapped mounts (runc from 1.2 on, crun from 1.8 on). */
  readonly userNamespaces: boolean;
}

/** Not run by us, as a regular expression for Ginkgo: it names an image by the digest of what only its registry has. */
export const unrunnable = 'public image with digest should be pulled and removed';

export function allowedSkips(facts: MachineFacts): readonly AllowedSkip[] {
  const rules: (AllowedSkip & { readonly when?: boolean })[] = [
    {
      name: unrunnable,
      reason: undefined,
      count: 1,
      because: 'the spec names an image by the digest of what only its public registry has',
    },
    {
      name: 'AppArmor',
      reason: /^AppArmor is disabled on this host$/,
      count: 9,
      when: !facts.appArmor,
      because: 'the kernel of this machine has no AppArmor',
    },
    {
      name: 'NRI',
      reason: /^NRI socket not configured/,
      count: 13,
      because: 'keelson has no node resource interface yet',
    },
    {
      name: 'UserNamespaces',
      reason: /user namespaces|ID mapping/,
      count: 6,
      when: !facts.userNamespaces,
      because:
        'the OCI runtime of this machine (runc older than 1.2) has no user namespaces with mapped mounts',
    },
  ];
  return rules.filter(({ when }) => when !== false);
}

/** `handler`: whose containers the suite runs; runc's by default. */
export async function machineFacts(signal: AbortSignal, handler = 'runc'): Promise<MachineFacts> {
  const appArmor = await readFile('/sys/module/apparmor/parameters/enabled', 'utf8').catch(() => 'N');
  const { stdout } = await exec(handler, ['--version'], { deadlineMs: 10_000, signal });
  const [major, minor] = (/version (\d+)\.(\d+)/.exec(stdout.toString('utf8')) ?? ['', '0', '0'])
    .slice(1)
    .map(Number);
  return {
    appArmor: appArmor.startsWith('Y'),
    userNamespaces: major! > 1 || minor! >= (handler === 'crun' ? 8 : 2),
  };
}
