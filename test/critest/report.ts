/** What a run of critest says, from Ginkgo's JSON report, and whether it is what is wanted. Pure. */

/** What of Ginkgo's report is read. */
export interface GinkgoReport {
  readonly SpecReports?: readonly {
    readonly ContainerHierarchyTexts?: readonly string[] | null;
    readonly LeafNodeType: string;
    readonly LeafNodeText: string;
    readonly State: string;
    readonly Failure?: { readonly Message?: string };
  }[];
}

/** A spec that may be skipped, and why. */
export interface AllowedSkip {
  /** In the full name of the spec. */
  readonly name: string | RegExp;
  /** What the suite gives as its reason; undefined where we told it not to run the spec. */
  readonly reason: RegExp | undefined;
  /** How many specs these are. */
  readonly count: number;
  /** Why it is right, for people. */
  readonly because: string;
}

export interface Spec {
  readonly name: string;
  /** `passed`, `skipped`, `failed`, `panicked`, … */
  readonly state: string;
  /** Of a skip or a failure; empty where the spec was never meant to run. */
  readonly reason: string;
}

export interface Verdict {
  readonly passed: readonly Spec[];
  /** With setup and teardown of the whole suite that went wrong. */
  readonly failed: readonly Spec[];
  readonly skipped: readonly Spec[];
  /** Of the skipped ones those that nothing allows. */
  readonly unexpected: readonly Spec[];
}

/** Benchmarks are specs of the same suite, which a validation does not run. */
const benchmark = /\bbenchmark/i;

/** Sorts the specs of one or, from parallel runs, several reports of the suite. */
export function judge(reports: readonly GinkgoReport[], allowed: readonly AllowedSkip[]): Verdict {
  const all = reports.flatMap((report) => report.SpecReports ?? []);
  const specs = all
    .map((spec) => ({
      node: spec.LeafNodeType,
      name: [...(spec.ContainerHierarchyTexts ?? []), spec.LeafNodeText || spec.LeafNodeType].join(' '),
      state: spec.State,
      reason: spec.Failure?.Message?.trim() ?? '',
    }))
    .filter(({ node, state }) => node === 'It' || !['passed', 'skipped'].includes(state))
    .filter(({ name, state }) => state !== 'skipped' || !benchmark.test(name))
    .map(({ name, state, reason }): Spec => ({ name, state, reason }))
    .sort((a, b) => (a.name < b.name ? -1 : 1));
  const skipped = specs.filter(({ state }) => state === 'skipped' || state === 'pending');
  return {
    passed: specs.filter(({ state }) => state === 'passed'),
    failed: specs.filter((spec) => spec.state !== 'passed' && !skipped.includes(spec)),
    skipped,
    unexpected: unexpectedOf(skipped, allowed),
  };
}

/** Each rule takes as many specs as it is for. */
function unexpectedOf(skipped: readonly Spec[], allowed: readonly AllowedSkip[]): Spec[] {
  const left = allowed.map(({ count }) => count);
  return skipped.filter((spec) => {
    const index = allowed.findIndex((rule, at) => left[at]! > 0 && matches(rule, spec));
    if (index !== -1) left[index]!--;
    return index === -1;
  });
}

function matches({ name, reason }: AllowedSkip, spec: Spec): boolean {
  const named = typeof name === 'string' ? spec.name.includes(name) : name.test(spec.name);
  return named && (reason === undefined ? spec.reason === '' : reason.test(spec.reason));
}

/** Lines for people: what failed and what was skipped, the skips together by reason; last the sum. */
export function describe(verdict: Verdict, allowed: readonly AllowedSkip[]): string[] {
  const lines: string[] = [];
  for (const spec of verdict.failed) lines.push(`FAILED  ${spec.name}`, ...indent(spec.reason || spec.state));
  for (const spec of verdict.unexpected) {
    lines.push(`SKIPPED though nothing allows it  ${spec.name}`, ...indent(spec.reason || spec.state));
  }
  const expected = verdict.skipped.filter((spec) => !verdict.unexpected.includes(spec));
  for (const rule of allowed) {
    const count = expected.filter((spec) => matches(rule, spec)).length;
    if (count > 0) lines.push(`skipped ${count} as expected: ${rule.because}`);
  }
  const { passed, failed, skipped } = verdict;
  lines.push(`${passed.length} passed, ${failed.length} failed, ${skipped.length} skipped`);
  return lines;
}

const indent = (text: string) => text.split('\n').map((line) => `        ${line}`);
