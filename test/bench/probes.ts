/**
 * `npm run bench:probes`: what probing a hundred containers every second costs the agent, as CPU time of a process
 * that does nothing else, with the real prober against real servers in another process. An exec probe starts a program
 * the way in which the agent starts runc: that is the agent's part of it. What runc itself takes is ExecSync in
 * `npm run bench:runtime`. The last line is one JSON object.
 */
import { fork } from 'node:child_process';
import { createServer as createHttpServer } from 'node:http';
import { type AddressInfo, createServer } from 'node:net';
import { setTimeout as delay } from 'node:timers/promises';
import type { Pod, PodContainer } from '../../agent/apiserver/types.ts';
import { makeProbeRoom, makeProber } from '../../agent/pods/prober.ts';
import type { ContainerStatus, RuntimeService } from '../../runtime/api.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { exec } from '../../runtime/host/exec.ts';
import { round } from './statistics.ts';

const targets = 100;
const warmUpMs = 5000;
const measureMs = 20_000;
const toReachPercent = 5;

type Kind = 'httpGet' | 'tcpSocket' | 'exec';

if (process.argv[2] === 'serve') await serve();
else if (process.argv[2] === 'measure') await measure(process.argv[3] as Kind, Number(process.argv[4]));
else await main();

/** The servers that are probed, in a process of their own: what they cost is not the agent's. */
async function serve(): Promise<void> {
  const http = createHttpServer((_request, response) => response.end('ok'));
  const tcp = createServer((socket) => socket.on('error', () => {}).end());
  const ports = await Promise.all(
    [http, tcp].map(
      (server) =>
        new Promise<number>((resolve) =>
          server.listen(0, '127.0.0.1', () => resolve((server.address() as AddressInfo).port)),
        ),
    ),
  );
  process.once('disconnect', () => process.exit(0));
  process.send?.(ports);
}

async function measure(kind: Kind, port: number): Promise<void> {
  let answers = 0;
  let told = 0;
  const runtime = {
    // A program through the agent's own way to start one; runc's cost is not the agent's process.
    async execSync() {
      const { code, stdout } = await exec('/bin/true', [], { deadlineMs: 5000 });
      return { exitCode: code, stdout, stderr: Buffer.alloc(0) };
    },
  } as unknown as RuntimeService;
  const room = makeProbeRoom(systemClock);
  const probes = {
    httpGet: { httpGet: { port, path: '/healthz' } },
    tcpSocket: { tcpSocket: { port } },
    exec: { exec: { command: ['true'] } },
  };
  const container: PodContainer = { name: 'app', readinessProbe: { ...probes[kind], periodSeconds: 1 } };
  const probers = Array.from({ length: targets }, (_, index) => {
    const pod: Pod = {
      metadata: { name: `p${index}`, namespace: 'default', uid: `u${index}` },
      spec: { containers: [container] },
    };
    const prober = makeProber({
      runtime,
      clock: systemClock,
      room,
      onResult: () => answers++,
      onTell: () => told++,
    });
    const status = {
      id: `c${index}`,
      metadata: { name: 'app', attempt: 0 },
      // Spread over the second, as containers that started one after the other are.
      startedAt: systemClock.now() + (index * 1000) / targets,
    } as ContainerStatus;
    prober.sync(pod, [status], '127.0.0.1', () => false);
    return prober;
  });
  await delay(warmUpMs);
  const total = async () => {
    const [family] = await room.counts.source.families();
    return family!.samples.reduce((sum, { value }) => sum + value, 0);
  };
  const before = await total();
  const cpu = process.cpuUsage();
  const begun = performance.now();
  await delay(measureMs);
  const { user, system } = process.cpuUsage(cpu);
  const seconds = (performance.now() - begun) / 1000;
  const asked = (await total()) - before;
  for (const prober of probers) prober.close();
  if (told > 0 || answers < targets) throw new Error(`${told} probes failed, ${answers} answers were told`);
  process.send?.({
    cpu_percent: round((user + system) / 10_000 / seconds),
    cpu_us_per_probe: Math.round((user + system) / asked),
    probes: asked,
  });
  process.disconnect?.();
}

async function main(): Promise<void> {
  const servers = fork(import.meta.filename, ['serve']);
  try {
    const [http, tcp] = await new Promise<[number, number]>((resolve, reject) => {
      servers.once('message', (ports) => resolve(ports as [number, number]));
      servers.once('exit', () => reject(new Error('the servers did not start')));
    });
    const figures: Record<string, unknown> = {};
    for (const [kind, port] of [
      ['httpGet', http],
      ['tcpSocket', tcp],
      ['exec', 0],
    ] as const) {
      const child = fork(import.meta.filename, ['measure', kind, String(port)], {
        execArgv: ['--max-semi-space-size=8', '--disable-warning=ExperimentalWarning'],
      });
      figures[kind] = await new Promise((resolve, reject) => {
        child.once('message', resolve);
        child.once('exit', (code) => reject(new Error(`the ${kind} measurement ended with code ${code}`)));
      });
      console.log(`${kind}: ${JSON.stringify(figures[kind])}`);
    }
    const reached = (figures.httpGet as { cpu_percent: number }).cpu_percent < toReachPercent;
    console.log(JSON.stringify({ bench: 'probes', targets, period_s: 1, ...figures, reached }));
    if (!reached) process.exitCode = 1;
  } finally {
    servers.kill();
  }
}
