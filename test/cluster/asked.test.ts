/** What the runtime is asked for, by keelson's agent and by a stock kubelet, for the same pods: field by field. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { dirname, resolve } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Container, Pod, PodSpec } from 'kubernetes-types/core/v1.js';
import { kubeletProgram } from '../peers/binaries.ts';
import { busyboxImage, pushImage } from '../peers/image.ts';
import type { TestNode } from '../peers/node.ts';
import { setKubelet } from './beside.ts';
import { isReady, makePod, skip as noCluster, setStage } from './stage.ts';

const kubelet = noCluster === false ? await kubeletProgram() : '';
const skip = noCluster || (typeof kubelet === 'string' ? false : kubelet.missing);
const program = resolve(dirname(fileURLToPath(import.meta.url)), '../../packaging/keelson');
/** The same namespace on both: one after the other. */
const namespace = 'asked';

function pods(image: string, named: string): Readonly<Record<string, PodSpec>> {
  const container = (more: object = {}): Container => ({
    name: 'main',
    image,
    command: ['sleep', '100000'],
    ...more,
  });
  const one = (own: object, ofPod: object = {}, more: object = {}): PodSpec => ({
    containers: [container({ securityContext: own })],
    securityContext: ofPod,
    ...more,
  });
  return {
    plain: one({}),
    user: one(
      { runAsUser: 1001 },
      { runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, supplementalGroups: [4000] },
    ),
    'group-of-the-pod': one({}, { runAsGroup: 3000 }),
    'named-user': { containers: [container({ image: named })] },
    'named-user-and-group': {
      containers: [container({ image: named, securityContext: { runAsGroup: 7 } })],
    },
    strict: one({}, { runAsUser: 33, supplementalGroupsPolicy: 'Strict', supplementalGroups: [60000] }),
    bounded: one({
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ['ALL'], add: ['NET_BIND_SERVICE'] },
    }),
    privileged: one({ privileged: true }),
    'added-capabilities': one({ capabilities: { add: ['SYS_TIME', 'NET_ADMIN'], drop: ['MKNOD'] } }),
    seccomp: one({}, { seccompProfile: { type: 'RuntimeDefault' } }),
    'own-seccomp': one(
      { seccompProfile: { type: 'Unconfined' } },
      { seccompProfile: { type: 'RuntimeDefault' } },
    ),
    selinux: one(
      { seLinuxOptions: { level: 's0:c3,c4' } },
      { seLinuxOptions: { level: 's0:c1,c2', type: 't_t' } },
    ),
    sysctl: one({}, { sysctls: [{ name: 'net.ipv4.tcp_fin_timeout', value: '31' }] }),
    'all-of-the-host': one({}, {}, { hostPID: true, hostIPC: true, hostNetwork: true }),
    shared: one({}, {}, { shareProcessNamespace: true }),
    limits: {
      containers: [
        container({
          resources: { requests: { cpu: '50m', memory: '16Mi' }, limits: { cpu: '250m', memory: '64Mi' } },
        }),
        { ...container(), name: 'other' },
      ],
    },
    guaranteed: {
      containers: [container({ resources: { limits: { cpu: '100m', memory: '32Mi' } } })],
    },
    volumes: {
      containers: [
        container({
          volumeMounts: [
            { name: 'scratch', mountPath: '/scratch' },
            { name: 'scratch', mountPath: '/part', subPath: 'a/b' },
            { name: 'host', mountPath: '/host', readOnly: true },
            { name: 'about', mountPath: '/about' },
          ],
        }),
      ],
      volumes: [
        { name: 'scratch', emptyDir: {} },
        { name: 'host', hostPath: { path: '/usr/share' } },
        {
          name: 'about',
          downwardAPI: { items: [{ path: 'name', fieldRef: { fieldPath: 'metadata.name' } }] },
        },
      ],
    },
    environment: {
      containers: [
        container({
          env: [
            { name: 'A', value: 'x$(B)$$(A)' },
            { name: 'NAME', valueFrom: { fieldRef: { fieldPath: 'metadata.name' } } },
            { name: 'C', value: '$(NAME)' },
          ],
          workingDir: '/tmp',
          tty: true,
          stdin: true,
        }),
      ],
      hostname: 'other',
      hostAliases: [{ ip: '10.1.1.1', hostnames: ['alias'] }],
      terminationGracePeriodSeconds: 7,
    },
  };
}

type Json = { [key: string]: unknown };

/** All that the node's runtime was asked for: by container, the configuration and the process that came of it. */
async function asked(node: TestNode, pod: Pod): Promise<Json> {
  const inspect = async (...args: string[]) => {
    const { stdout } = await promisify(execFile)(
      program,
      ['inspect', '--json', '--config', node.paths.configFile, ...args],
      { maxBuffer: 1 << 24 },
    );
    return JSON.parse(stdout) as { info: { config: Json; runtimeSpec?: Json } };
  };
  const name = `${namespace}/${pod.metadata!.name}`;
  const told: Json = { sandbox: (await inspect('--pod', name)).info.config };
  for (const container of pod.spec!.containers) {
    const { config, runtimeSpec } = (await inspect(`${name}/${container.name}`)).info;
    const { namespaces: _, cgroupsPath: __, ...linux } = runtimeSpec!['linux'] as Json;
    told[container.name] = { config, process: runtimeSpec!['process'], linux };
  }
  const { uid } = pod.metadata!;
  const text = JSON.stringify(told)
    .replaceAll(uid!, '<uid>')
    .replaceAll(node.paths.folder, '<folder>')
    .replaceAll(node.cgroupRoot, '<cgroups>')
    .replaceAll(node.name, '<node>')
    .replaceAll(/(containers\/\w+)\/\w+"/g, '$1/<number>"')
    .replaceAll(/kube-api-access-\w+/g, 'kube-api-access');
  return JSON.parse(text) as Json;
}

/** What does not have to be the same, and why not. */
const meansNothing: readonly RegExp[] = [
  // Where kubelet had the pod from and when, and what it knows a changed container by.
  /annotations\/(kubernetes\.io\/config\.(seen|source)|io\.kubernetes\.container\.hash)$/,
  // keelson leaves the image's user to the runtime: the process has the user of both.
  /security\/(runAsUser|runAsUsername)$/,
  // Without a quota no period matters.
  /resources\/(cpuPeriod|cpu\/period)$/,
  // Without one it is the limit of memory: the specification has it.
  /config\/linux\/resources\/memorySwapLimitBytes$/,
];

/** Every leaf by its path. Entries of lists go by what they are about; what is empty is as what is not there. */
function leaves(value: unknown, path = ''): [path: string, value: string][] {
  if (value === undefined || value === null || value === false || value === '') return [];
  if (typeof value !== 'object') return [[path, JSON.stringify(value)]];
  if ((value as Json)['mode'] === 'node' && path.endsWith('/namespaces/user')) return [];
  const hidesNothing = (value as Json)['privileged'] === true;
  return Object.entries(value)
    .filter(([key]) => !(hidesNothing && /^(masked|readonly)Paths$/.test(key)))
    .flatMap(([key, entry]) => leaves(entry, `${path}/${Array.isArray(value) ? keyOf(entry, key) : key}`));
}

function keyOf(entry: unknown, index: string): string {
  if (typeof entry === 'string') return entry;
  const { containerPath, pageSize } = entry as { containerPath?: string; pageSize?: string };
  return containerPath ?? pageSize ?? index;
}

test('the runtime is asked for what kubelet would ask for', { skip, timeout: 400_000 }, async (t) => {
  assert.ok(typeof kubelet === 'string');
  const stage = await setStage(t);
  const { cluster, registry, images } = stage;
  const { node } = await setKubelet(t, stage, kubelet);
  await pushImage(registry, 'test/user:named', busyboxImage({ config: { User: 'www-data' } }));
  const specs = pods(images.one, `${registry}/test/user:named`);
  await stage.makeNamespace(namespace);
  const found: Map<string, Json>[] = [];
  for (const side of [stage.node, node]) {
    const byName = new Map<string, Json>();
    await cluster.apply(
      ...Object.entries(specs).map(([name, spec]) =>
        makePod(namespace, name, { nodeName: side.name, ...spec }),
      ),
    );
    for (const name of Object.keys(specs)) {
      const pod = await stage.pod(namespace, name, isReady);
      byName.set(name, await asked(side, pod));
    }
    await cluster.kubectl(['delete', 'pod', '--all', '-n', namespace, '--grace-period=1'], {
      deadlineMs: 60_000,
    });
    found.push(byName);
  }
  const [ours, theirs] = found as [Map<string, Json>, Map<string, Json>];
  for (const name of Object.keys(specs)) {
    await t.test(name, () => {
      const [a, b] = [new Map(leaves(ours.get(name))), new Map(leaves(theirs.get(name)))];
      assert.ok(a.size > 50, `only ${a.size} fields seen`);
      const different = [...new Set([...a.keys(), ...b.keys()])]
        .filter((path) => a.get(path) !== b.get(path) && !meansNothing.some((pattern) => pattern.test(path)))
        .map((path) => `${path}: ${a.get(path) ?? '-'} and not ${b.get(path) ?? '-'}`);
      assert.deepEqual(different, []);
    });
  }
});
