/**
 * What tests may leave on a machine, told by the names that they give: folders `keelson-test-*` in the temporary
 * folder, with mounts and processes of them; cgroups, links, network namespaces and firewall rules.
 *   node test/leftovers.ts list            prints what is there now
 *   node test/leftovers.ts compare FILE    exits 1 and prints what is there now and was not in the list FILE
 */
import { readFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { listFolder } from '../runtime/host/files.ts';
import {
  cgroupsNamed,
  links,
  mountsBelow,
  namedNetworkNamespaces,
  natRules,
  processesNaming,
} from './peers/machine.ts';
import { waitFor } from './peers/process.ts';

const own = /^(keelson-test|kt[0-9a-f])/;
const folderPrefix = 'keelson-test';

async function traces(): Promise<string[]> {
  const start = join(tmpdir(), folderPrefix);
  const [files, mounts, processes, cgroups, allLinks, namespaces, rules] = await Promise.all([
    listFolder(tmpdir()),
    mountsBelow('/'),
    processesNaming(start),
    Promise.all([folderPrefix, 'keelson_test'].map(cgroupsNamed)).then((names) => names.flat()),
    links(),
    namedNetworkNamespaces(),
    natRules(),
  ]);
  return [
    ...files.filter((name) => name.startsWith(folderPrefix)).map((name) => `folder ${join(tmpdir(), name)}`),
    ...mounts.filter((target) => target.startsWith(start)).map((target) => `mount ${target}`),
    ...processes.map(({ pid, command }) => `process ${pid} ${command.slice(0, 200)}`),
    ...cgroups.map((name) => `cgroup ${name}`),
    ...allLinks.filter(({ name }) => own.test(name)).map(({ name }) => `link ${name}`),
    ...namespaces.filter((name) => own.test(name)).map((name) => `network namespace ${name}`),
    ...rules.filter((rule) => rule.includes(folderPrefix)).map((rule) => `firewall rule ${rule}`),
  ];
}

const [mode, file] = process.argv.slice(2);
if (mode === 'list') {
  console.log((await traces()).join('\n'));
} else if (mode === 'compare' && file !== undefined) {
  const known = (await readFile(file, 'utf8')).split('\n');
  let left: string[] = [];
  const look = async () => {
    left = (await traces()).filter((trace) => !known.includes(trace));
    return left.length === 0 ? true : undefined;
  };
  // What the last test has just ended may need a moment to go.
  await waitFor('leftovers', look, { deadlineMs: 5000, everyMs: 250 }).catch(() => {});
  if (left.length > 0) {
    console.error(`the tests left behind:\n  ${left.join('\n  ')}`);
    process.exitCode = 1;
  }
} else {
  console.error('usage: node test/leftovers.ts list | compare FILE');
  process.exitCode = 2;
}
