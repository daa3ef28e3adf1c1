/** A line for each spec that has ended, from the runner's output as it comes. Pure but for what `print` does. */

/** `• [1.2 seconds]`, `• [FAILED] [1.2 seconds]`, `S [SKIPPED] [0.1 seconds]`; the name stands in the line below it. */
const outcome = /^(?:•|S|P) (?:\[([A-Z-]+)\] )?\[([\d.]+ seconds)\]$/;

/** Takes lines of the output of `ginkgo -v`. */
export function makeProgress(print: (line: string) => void): (line: string) => void {
  let total = '?';
  let ended = 0;
  let last: { readonly state: string; readonly took: string } | undefined;
  return (line) => {
    if (last !== undefined) {
      ended++;
      print(`${ended}/${total} ${last.state} ${line.trim()} (${last.took})`);
      last = undefined;
      return;
    }
    const [, state = 'passed', took] = outcome.exec(line) ?? [];
    if (took !== undefined) last = { state, took };
    else total = /^Will run (\d+) of/.exec(line)?.[1] ?? total;
  };
}
