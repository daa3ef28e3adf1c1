/** critest's own benchmarks of pods and containers against one runtime. */
import { mkdir, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { exec } from '../../../runtime/host/exec.ts';
import type { CriTools } from '../../peers/cri-tools.ts';
import { spread } from '../statistics.ts';

/** What the suite writes for one experiment. */
interface Datapoints {
  readonly operationsNames?: readonly string[];
  readonly datapoints?: readonly { readonly operationsDurationsNs: readonly number[] }[];
}

const samples = 20;

/** Median ms by file and operation. `folder` gets the suite's output. */
export async function benchmarkOf(
  { critest }: CriTools,
  socket: string,
  folder: string,
): Promise<Record<string, Record<string, number>>> {
  const output = join(folder, 'critest');
  await mkdir(output, { recursive: true });
  const params = join(folder, 'critest-params.yaml');
  await writeFile(
    params,
    JSON.stringify({
      ...{ containersNumber: samples, containersNumberParallel: 1 },
      ...{ podsNumber: samples, podsNumberParallel: 1 },
    }),
  );
  await exec(
    critest,
    [
      '-benchmark',
      `-runtime-endpoint=unix://${socket}`,
      `-config=${join(folder, 'no-crictl.yaml')}`,
      `-benchmarking-params-file=${params}`,
      `-benchmarking-output-dir=${output}`,
      '-ginkgo.focus=benchmark about (basic operations on Container|lifecycle of PodSandbox)',
      '-ginkgo.no-color',
    ],
    { deadlineMs: 600_000, cwd: folder, maxOutput: 16 << 20 },
  );
  const results: Record<string, Record<string, number>> = {};
  for (const name of (await readdir(output)).sort()) {
    const { operationsNames = [], datapoints = [] } = JSON.parse(
      await readFile(join(output, name), 'utf8'),
    ) as Datapoints;
    results[name] = Object.fromEntries(
      operationsNames.map((operation, index) => [
        operation,
        spread(
          datapoints.map(({ operationsDurationsNs }) => operationsDurationsNs[index]! / 1e6),
          1,
        ).median,
      ]),
    );
  }
  return results;
}
