/** The events of the same pods on keelson and on a stock kubelet (over keelson's CRI socket), word by word. */
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Container, Event, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { kubeletProgram } from '../peers/binaries.ts';
import { waitFor } from '../peers/process.ts';
import { setKubelet } from './beside.ts';
import { isReady, makePod, skip as noCluster, setStage } from './stage.ts';

const kubelet = noCluster === false ? await kubeletProgram() : '';
const skip = noCluster || (typeof kubelet === 'string' ? false : kubelet.missing);

/** Pods by name; those in `deleted` are deleted once their events have come together, and more follow. */
function pods(registry: string, image: string): Readonly<Record<string, PodSpec>> {
  const sleeper = ['sh', '-c', 'trap "exit 0" TERM; sleep 100000 & wait'];
  const container = (more: Partial<Container> = {}): Container => ({
    name: 'main',
    image,
    command: sleeper,
    ...more,
  });
  const one = (more: Partial<Container> = {}, spec: Partial<PodSpec> = {}): PodSpec => ({
    containers: [container(more)],
    ...spec,
  });
  const failing = (path: string, more: object = {}) => ({
    exec: { command: ['sh', '-c', `echo ${path} is bad; exit 1`] },
    periodSeconds: 1,
    // However busy the machine is.
    timeoutSeconds: 30,
    ...more,
  });
  const mount = (volume: object): PodSpec =>
    one({ volumeMounts: [{ name: 'v', mountPath: '/v' }] }, { volumes: [{ name: 'v', ...volume }] });
  const bad = { exec: { command: ['sh', '-c', 'echo no; exit 1'] } };
  return {
    good: one({}, { initContainers: [{ ...container(), name: 'init', command: ['true'] }] }),
    ending: one({ command: ['true'] }, { restartPolicy: 'Never' }),
    'no-image': one({ image: `${registry}/test/none:1` }),
    'bad-name': one({ image: 'Not/A:Valid:Name' }),
    never: one({ image: `${registry}/test/none:1`, imagePullPolicy: 'Never' }),
    always: one({ imagePullPolicy: 'Always' }),
    crashing: one({ command: ['sh', '-c', 'exit 3'] }),
    'bad-init': one({}, { initContainers: [{ ...container(), name: 'init', command: ['false'] }] }),
    'no-command': one({ command: ['/no/such/command'] }),
    live: one({ livenessProbe: failing('liveness', { failureThreshold: 1 }) }),
    ready: one({ readinessProbe: failing('readiness') }),
    refusing: one({ readinessProbe: { httpGet: { path: '/', port: 81 }, periodSeconds: 1 } }),
    slow: one({
      readinessProbe: {
        exec: { command: ['sh', '-c', 'echo begun; sleep 30'] },
        periodSeconds: 1,
        timeoutSeconds: 1,
      },
    }),
    closed: one({ readinessProbe: { tcpSocket: { port: 81 }, periodSeconds: 1 } }),
    speechless: one({ readinessProbe: { grpc: { port: 81 }, periodSeconds: 1 } as object }),
    starting: one({ startupProbe: failing('startup', { failureThreshold: 1 }) }),
    'no-config-map': mount({ configMap: { name: 'none' } }),
    'no-folder': mount({ hostPath: { path: '/no/such/folder', type: 'Directory' } }),
    'no-secret': one({ env: [{ name: 'X', valueFrom: { secretKeyRef: { name: 'none', key: 'k' } } }] }),
    'no-root': one({}, { securityContext: { runAsNonRoot: true } }),
    'bad-start': one({ lifecycle: { postStart: bad } }),
    'bad-end': one({ lifecycle: { preStop: bad } }),
    sysctl: one({}, { securityContext: { sysctls: [{ name: 'kernel.sem', value: '1' }] } }),
    elsewhere: one({}, { nodeSelector: { nowhere: 'true' } }),
    'no-pull-secret': one({}, { imagePullSecrets: [{ name: 'none' }] }),
    'many-servers': one(
      {},
      { dnsPolicy: 'Default', dnsConfig: { nameservers: ['10.0.0.1', '10.0.0.2', '10.0.0.3'] } },
    ),
    sidecar: {
      ...one(),
      initContainers: [{ ...container(), name: 'side', restartPolicy: 'Always' } as Container],
    },
  };
}
/** What must have been told of a pod before the two are compared: reason, and a part of the message where it matters. */
const milestones: Readonly<Record<string, readonly string[]>> = {
  good: ['Started Normal spec.containers{main}'],
  'no-image': ['Failed Warning spec.containers{main}: Error: ImagePullBackOff'],
  'bad-name': ['Failed Warning'],
  never: ['ErrImageNeverPull'],
  crashing: ['BackOff Warning'],
  'bad-init': ['BackOff Warning spec.initContainers{init}'],
  'no-command': ['Failed'],
  live: ['Killing'],
  ready: ['Unhealthy'],
  refusing: ['Unhealthy'],
  slow: ['Unhealthy'],
  closed: ['Unhealthy'],
  speechless: ['Unhealthy'],
  starting: ['Killing'],
  'no-config-map': ['FailedMount'],
  'no-folder': ['FailedMount'],
  'no-secret': ['Failed'],
  'no-root': ['Failed'],
  'bad-start': ['FailedPostStartHook', 'BackOff'],
  sysctl: ['SysctlForbidden'],
  elsewhere: ['NodeAffinity'],
  'many-servers': ['DNSConfigForming'],
};
const deleted = ['good', 'bad-end', 'sidecar'];
/** keelson makes the sandbox and looks for images while others are still in the way; kubelet has not got there. */
const ahead = new Set(['no-config-map', 'no-folder', 'bad-init']);
const isAhead = (line: string) => /^(Pulled|MissingClusterDNS) /.test(line);

/** Without what is another one each time: ids, addresses, times. */
function plain(message: string, pod: Pod | undefined): string {
  return (
    message
      .replaceAll(pod?.metadata?.uid ?? '\0', '<uid>')
      .replaceAll(pod?.status?.podIP || '\0', '<ip>')
      .replaceAll(pod?.metadata?.namespace ?? '\0', '<namespace>')
      // Each says in its own words what is wrong with these.
      .replaceAll(/(hostPath type check failed).*/g, '$1')
      .replaceAll(/(Failed to apply default image tag "[^"]*").*/g, '$1')
      .replaceAll(/(error|timeout): (failed to connect service).*/g, '$2')
      .replaceAll(/rpc error: code = \w+ desc = /g, '')
      .replaceAll(/\b[0-9a-f]{64}\b/g, '<id>')
      .replaceAll(/in [\d.]+m?s \([\d.]+m?s including waiting\)/g, 'in <time>')
      .replaceAll(/back-off (\dm)?\d+s /g, 'back-off <time> ')
  );
}

test('events are those of kubelet', { skip, timeout: 600_000 }, async (t) => {
  assert.ok(typeof kubelet === 'string');
  const stage = await setStage(t);
  const { cluster, registry, images } = stage;
  const { daemon, node: runtime } = await setKubelet(t, stage, kubelet);
  const sides = { ours: stage.node.name, theirs: runtime.name };
  const specs = pods(registry, images.one);
  for (const [namespace, nodeName] of Object.entries(sides)) {
    await stage.makeNamespace(namespace);
    // Else it is a matter of chance which pod pulls it.
    const command = ['sleep', '100000'];
    const containers = [{ name: 'main', image: images.one, command }];
    await cluster.apply(makePod(namespace, 'first', { nodeName, containers }));
    await stage.pod(namespace, 'first', isReady);
  }
  for (const [namespace, nodeName] of Object.entries(sides)) {
    await cluster.apply(
      ...Object.entries(specs).map(([name, spec]) => makePod(namespace, name, { nodeName, ...spec })),
    );
  }
  const seen = new Map<string, Pod>();
  /** `reason type fieldPath: message` of each event, by pod. */
  const told = async (namespace: string): Promise<Map<string, Set<string>>> => {
    for (const pod of await stage.pods(namespace)) seen.set(`${namespace}/${pod.metadata!.name}`, pod);
    const list = await cluster.read<{ items: Event[] }>(`/api/v1/namespaces/${namespace}/events`);
    const found = new Map<string, Set<string>>();
    for (const { involvedObject, type, reason, message = '' } of list!.items) {
      const name = involvedObject.name!;
      const text = plain(message, seen.get(`${namespace}/${name}`));
      const line = `${reason} ${type} ${involvedObject.fieldPath ?? '-'}: ${text}`;
      found.set(name, (found.get(name) ?? new Set<string>()).add(line));
    }
    return found;
  };
  const differences = async (names: readonly string[]) => {
    const [ours, theirs] = [await told('ours'), await told('theirs')];
    return names.flatMap((name) => {
      const [a, b] = [ours.get(name) ?? new Set<string>(), theirs.get(name) ?? new Set<string>()];
      // A hint may follow what kubelet says.
      const same = (line: string, other: string) =>
        line === other || line.startsWith(`${other} (`) || line.startsWith(`${other}: `);
      const more = [...a].filter(
        (line) => ![...b].some((other) => same(line, other)) && !(ahead.has(name) && isAhead(line)),
      );
      const less = [...b].filter((other) => ![...a].some((line) => same(line, other)));
      return [
        ...more.map((line) => `${name}: only keelson: ${line}`),
        ...less.map((line) => `${name}: only kubelet: ${line}`),
      ];
    });
  };
  const agree = async (
    names: readonly string[],
    deadlineMs: number,
    wanted: Readonly<Record<string, readonly string[]>>,
  ) => {
    let last: string[] = [];
    await waitFor(
      'the events to be the same',
      async () => {
        last = await differences(names);
        for (const namespace of Object.keys(sides)) {
          const now = await told(namespace);
          for (const [name, starts] of Object.entries(wanted)) {
            const lines = [...(now.get(name) ?? [])];
            for (const start of starts)
              if (!lines.some((line) => line.startsWith(start)))
                last.push(`${name}: ${namespace}: no ${start}`);
          }
        }
        return last.length === 0 ? true : undefined;
      },
      { deadlineMs, everyMs: 1000, daemon },
    ).catch(() => assert.fail(last.sort().join('\n')));
  };
  await t.test('while they are there', () => agree(Object.keys(specs), 100_000, milestones));
  await t.test('when their time is over', async () => {
    const container = { name: 'main', image: images.one, command: ['sleep', '100000'] };
    for (const [namespace, nodeName] of Object.entries(sides)) {
      const spec = { nodeName, activeDeadlineSeconds: 15, containers: [container] };
      await cluster.apply(makePod(namespace, 'late', spec));
    }
    await agree(['late'], 60_000, { late: ['DeadlineExceeded Normal -', 'Killing'] });
  });
  await t.test('when they are changed', async () => {
    for (const namespace of Object.keys(sides)) {
      await cluster.kubectl(['set', 'image', 'pod/sidecar', `main=${images.two}`, '-n', namespace]);
      const debug = ['--image', images.one, '-c', 'debugger', '--', 'true'];
      await cluster.kubectl(['debug', 'ready', '-n', namespace, '--attach=false', ...debug]);
    }
    await agree(['sidecar', 'ready'], 60_000, {
      sidecar: ['Killing Normal spec.containers{main}: Container main definition changed'],
      ready: ['Started Normal spec.ephemeralContainers{debugger}'],
    });
  });
  await t.test('and when they go', async () => {
    for (const namespace of Object.keys(sides))
      await cluster.kubectl(['delete', 'pod', ...deleted, '-n', namespace, '--wait=true'], {
        deadlineMs: 60_000,
      });
    await agree(deleted, 30_000, {
      good: ['Killing Normal spec.containers{main}: Stopping container main'],
      'bad-end': ['FailedPreStopHook', 'Killing'],
      sidecar: ['Killing Normal spec.initContainers{side}'],
    });
  });
  await t.test(
    'of a static pod: about the pod of the file, whose uid its mirror has as an annotation',
    async () => {
      const spec = { containers: [{ name: 'main', image: images.one, command: ['sleep', '100000'] }] };
      const manifest = JSON.stringify(makePod('ours', 'fixed', spec));
      await writeFile(join(stage.node.paths.staticPodPath, 'fixed.json'), manifest);
      await writeFile(
        join(runtime.paths.staticPodPath, 'fixed.json'),
        manifest.replace('"namespace":"ours"', '"namespace":"theirs"'),
      );
      for (const [namespace, nodeName] of Object.entries(sides)) {
        const name = `fixed-${nodeName}`;
        const mirror = await stage.pod(namespace, name, isReady);
        const { involvedObject } = await stage.event(namespace, name, ({ reason }) => reason === 'Started');
        assert.equal(involvedObject.uid, mirror.metadata!.annotations!['kubernetes.io/config.mirror']);
        assert.notEqual(involvedObject.uid, mirror.metadata!.uid);
        assert.equal(involvedObject.fieldPath, 'spec.containers{main}');
        assert.match(await cluster.kubectl(['describe', 'pod', name, '-n', namespace]), /Container started/);
      }
    },
  );
  await t.test('of the node', async () => {
    const list = await cluster.read<{ items: Event[] }>('/api/v1/namespaces/default/events');
    const of = (name: string) =>
      new Set<string>(
        list!.items
          .filter(({ involvedObject }) => involvedObject.kind === 'Node' && involvedObject.name === name)
          .filter(({ source }) => source?.component === 'kubelet')
          .map(({ type, reason, message }) => `${reason} ${type}: ${message?.replaceAll(name, '<node>')}`),
      );
    const [ours, theirs] = [of(sides.ours), of(sides.theirs)];
    assert.deepEqual([...ours.difference(theirs)], ['Starting Normal: Starting keelson.']);
    assert.deepEqual([...theirs.difference(ours)], ['Starting Normal: Starting kubelet.']);
  });
});
