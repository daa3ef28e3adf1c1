import assert from 'node:assert/strict';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import type { Fields } from '../../../agent/config/field.ts';
import { loadConfig, readConfig } from '../../../agent/config/load.ts';
import { deliberateDefaults, schema } from '../../../agent/config/schema.ts';
import { isError, type KeelsonError } from '../../../runtime/host/errors.ts';
import { kubeadmFile, kubeletDefaults, kubeletFields } from './kubelet.ts';

async function folder(t: TestContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'keelson-test-config-'));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}
async function load(t: TestContext, text: string) {
  const file = join(await folder(t), 'config.yaml');
  await writeFile(file, text);
  return loadConfig(file);
}
async function faultOf(t: TestContext, text: string): Promise<KeelsonError> {
  const error: unknown = await load(t, text).then(
    () => assert.fail(`accepted: ${text}`),
    (failure: unknown) => failure,
  );
  assert.ok(isError(error, 'CONFIG_INVALID'), String(error));
  return error;
}
function pathsOf(fields: Fields, above = ''): string[] {
  return Object.entries(fields).flatMap(([name, field]) => [
    above + name,
    ...pathsOf(field.fields ?? {}, `${above}${name}.`),
  ]);
}
function at(values: unknown, path: string): unknown {
  return path
    .split('.')
    .reduce<unknown>((value, name) => (value as Record<string, unknown> | undefined)?.[name], values);
}
const nowhere = { name: 'test', lineOf: () => undefined };

test('the table has every field of KubeletConfiguration and no others', () => {
  const { keelson: _, ...upstream } = schema.fields!;
  assert.deepEqual(pathsOf(upstream).sort(), [...kubeletFields].sort());
});

test('every default is the one of kubelet, except the deliberate ones', () => {
  const { values } = readConfig({}, nowhere);
  const differing: string[] = [];
  for (const path of kubeletFields) {
    if (path === 'apiVersion' || path === 'kind') continue;
    const ours = at(values, path);
    if (typeof ours === 'object' && !Array.isArray(ours) && !(path in kubeletDefaults)) continue;
    const theirs = kubeletDefaults[path] ?? (Array.isArray(ours) ? [] : undefined);
    try {
      assert.deepEqual(ours, theirs);
    } catch {
      differing.push(path);
    }
  }
  assert.deepEqual(differing.sort(), Object.keys(deliberateDefaults).sort());
});

test('the file that kubeadm writes is accepted, its zeros mean the defaults', async (t) => {
  const config = await load(t, kubeadmFile);
  assert.equal(config.syncFrequency, 60_000);
  assert.equal(config.nodeStatusUpdateFrequency, 10_000);
  assert.equal(config.nodeStatusReportFrequency, 300_000);
  assert.equal(config.authentication.webhook.cacheTTL, 120_000);
  assert.equal(config.authentication.x509.clientCAFile, '/etc/kubernetes/pki/ca.crt');
  assert.equal(config.containerRuntimeEndpoint, undefined);
  assert.equal(config.cgroupDriver, 'systemd');
  assert.equal(config.crashLoopBackOff.maxContainerRestartPeriod, 300_000);
  assert.deepEqual(
    config.warnings.map((text) => text.replace(/^.*: /, '')),
    ['rotateCertificates is set, but keelson does not act on it yet'],
  );
});

test('the socket of another runtime is taken as kubelet takes it', async (t) => {
  for (const endpoint of ['unix:///run/x.sock', 'unix:/run/x.sock', '/run/x.sock']) {
    const config = await load(t, `containerRuntimeEndpoint: ${endpoint}\nruntimeRequestTimeout: 5m`);
    assert.equal(config.containerRuntimeEndpoint, endpoint);
    assert.deepEqual(config.warnings, []);
  }
  for (const endpoint of ['tcp://127.0.0.1:1', 'unix://run/x.sock', 'run/x.sock']) {
    await assert.rejects(
      load(t, `containerRuntimeEndpoint: ${endpoint}`),
      /containerRuntimeEndpoint.*unix socket/,
    );
  }
});

test('zero is a value in fields that are pointers in Go', async (t) => {
  const config = await load(t, 'healthzPort: 0\neventRecordQPS: 0\nresolvConf: ""\npodPidsLimit: 0\n');
  assert.equal(config.healthzPort, 0);
  assert.equal(config.eventRecordQPS, 0);
  assert.equal(config.resolvConf, '');
  assert.equal(config.podPidsLimit, 0);
});

test('nodeStatusUpdateFrequency alone also sets how often the status is reported', async (t) => {
  assert.equal((await load(t, 'nodeStatusUpdateFrequency: 7s')).nodeStatusReportFrequency, 7000);
  const both = await load(t, 'nodeStatusUpdateFrequency: 7s\nnodeStatusReportFrequency: 9s');
  assert.equal(both.nodeStatusReportFrequency, 9000);
});

test('an unknown field is told with its path, line and the nearest known one', async (t) => {
  const cases: readonly [string, RegExp, string][] = [
    [
      'kind: KubeletConfiguration\nmaxPodz: 3',
      /maxPodz \(line 2\): unknown field, did you mean maxPods\?/,
      'maxPodz',
    ],
    ['MaxPods: 3', /MaxPods \(line 1\): unknown field, did you mean maxPods\?/, 'MaxPods'],
    [
      'authentication:\n  webhok:\n    enabled: true',
      /authentication\.webhok \(line 2\): unknown field, did you mean authentication\.webhook\?/,
      'authentication.webhok',
    ],
    ['clientCAFile: /x', /clientCAFile .*did you mean authentication\.x509\.clientCAFile\?/, 'clientCAFile'],
    ['keelson:\n  statedir: /x', /keelson\.statedir .*did you mean keelson\.stateDir\?/, 'keelson.statedir'],
    ['stateDir: /x', /stateDir .*did you mean keelson\.stateDir\?/, 'stateDir'],
    [
      'registerWithTaints:\n- keyy: a\n  effect: NoSchedule',
      /registerWithTaints\[0\]\.keyy \(line 2\): unknown field, did you mean registerWithTaints\[0\]\.key\?/,
      'registerWithTaints[0].keyy',
    ],
    ['"a.b": 1', /\["a\.b"\] \(line 1\): unknown field/, '["a.b"]'],
    ['__proto__: {port: 1}', /__proto__ \(line 1\): unknown field/, '__proto__'],
    ['constructor: 1', /constructor \(line 1\): unknown field/, 'constructor'],
  ];
  for (const [text, message, field] of cases) {
    const error = await faultOf(t, text);
    assert.match(error.message, message);
    assert.deepEqual(error.details['fields'], [field]);
  }
});

test('a wrong type is told with what was expected', async (t) => {
  const cases: readonly [string, RegExp][] = [
    ['port: "10250"', /port \(line 1\): expected an integer, got string "10250"/],
    ['port: 70000', /port .*must be from 1 to 65535, got 70000/],
    ['port: 1.5', /port .*expected an integer, got number 1\.5/],
    ['syncFrequency: 10', /syncFrequency .*expected a duration such as "10s".*, got number 10/],
    ['syncFrequency: ten', /syncFrequency .*expected a duration/],
    ['syncFrequency: -3s', /syncFrequency .*must not be negative/],
    ['enableServer: "yes"', /enableServer .*expected a boolean \(true or false\), got string "yes"/],
    ['clusterDNS: 10.96.0.10', /clusterDNS .*expected a list of string, got string/],
    ['clusterDNS: [10.96.0.300]', /clusterDNS\[0\] .*expected an IP address/],
    ['kubeReserved: {cpu: 1}', /kubeReserved\.cpu .*got number 1: put it in quotes/],
    ['kubeReserved: {cpu: "1x"}', /kubeReserved\.cpu .*expected a quantity/],
    ['evictionHard: {memory.available: "5%%"}', /evictionHard\["memory\.available"\] .*percentage/],
    ['authorization: Webhook', /authorization .*expected a map, got string "Webhook"/],
    [
      'authorization: {mode: RBAC}',
      /authorization\.mode .*expected one of AlwaysAllow, Webhook, got string "RBAC"/,
    ],
    ['cgroupDriver: cgroup', /cgroupDriver .*expected one of cgroupfs, systemd/],
    ['apiVersion: kubelet.config.k8s.io/v1', /apiVersion .*expected kubelet\.config\.k8s\.io\/v1beta1/],
    ['kind: Pod', /kind .*expected KubeletConfiguration, got Pod/],
    ['preloadedImagesVerificationAllowlist: [a]', /needs imagePullCredentialsVerificationPolicy/],
    [
      'imagePullCredentialsVerificationPolicy: NeverVerifyAllowlistedImages\npreloadedImagesVerificationAllowlist: ["a/*", "a:1"]',
      /preloadedImagesVerificationAllowlist\[1\] .*neither a tag nor a digest/,
    ],
    ['imagePullCredentialsVerificationPolicy: Sometimes', /expected one of NeverVerify, /],
    [
      'keelson: {imageCredentialProviderBinDir: /x}',
      /keelson\.imageCredentialProviderConfig.*belong together: set both or none/,
    ],
    ['keelson: {stateDir: relative}', /keelson\.stateDir .*expected an? absolute path/],
    ['keelson: {nodeName: UPPER}', /keelson\.nodeName .*lower-case/],
    ['keelson: {downloadBytesInFlight: 2000}', /keelson\.downloadBytesInFlight .*from 1 to 1024/],
    ['keelson: {downloadMinSpeed: -1}', /keelson\.downloadMinSpeed .*from 0/],
    ['keelson: {downloadStallTimeout: 10ms}', /keelson\.downloadStallTimeout .*from 1s to 10m/],
    ['keelson: {keepBlobs: "yes"}', /keelson\.keepBlobs .*expected a boolean/],
    ['keelson: {nodeIP: "10.0.0.1,x"}', /keelson\.nodeIP .*IP address/],
    ['tlsCertFile: /a', /tlsPrivateKeyFile.*belong together/],
    ['crashLoopBackOff: {maxContainerRestartPeriod: 10m}', /from 1s to 300s/],
    ['imageGCHighThresholdPercent: 70', /imageGCLowThresholdPercent.*less than/],
    ['- a', /document.*expected a map of fields/],
    ['port: [', /not valid YAML/],
    ['port: 1\nport: 2', /not valid YAML: .*unique/i],
    ['maxPods: -1', /maxPods .*must be from 0/],
  ];
  for (const [text, message] of cases) assert.match((await faultOf(t, text)).message, message);
});

test('all faults of a file are told at once', async (t) => {
  const error = await faultOf(t, 'port: x\nmaxPodz: 1\nsyncFrequency: 1');
  assert.deepEqual([...(error.details['fields'] as string[])].sort(), ['maxPodz', 'port', 'syncFrequency']);
});

test('overrides are merged into maps and replace everything else', async (t) => {
  const file = join(await folder(t), 'config.yaml');
  await writeFile(file, 'clusterDNS: [10.0.0.1]\nport: 1\nkeelson: {nodeLabels: {a: "1"}, runDir: /r}\n');
  const config = await loadConfig(file, {
    clusterDNS: ['10.0.0.2'],
    keelson: { nodeLabels: { b: '2' }, hostnameOverride: 'edge' },
  });
  assert.deepEqual(config.clusterDNS, ['10.0.0.2']);
  assert.deepEqual(config.keelson.nodeLabels, { a: '1', b: '2' });
  assert.equal(config.keelson.runDir, '/r');
  assert.equal(config.port, 1);
  assert.equal(config.nodeName, 'edge');
});

test('a field that is not acted on gives one warning, unless it is set to its default', async (t) => {
  const config = await load(
    t,
    'tlsCipherSuites: [A]\nhairpinMode: none\nenableProfilingHandler: true\ntracing: {endpoint: x, samplingRatePerMillion: 1}',
  );
  assert.deepEqual(config.warnings.map((text) => / (\S+) is set/.exec(text)![1]).sort(), [
    'hairpinMode',
    'tlsCipherSuites',
    'tracing.endpoint',
    'tracing.samplingRatePerMillion',
  ]);
});

test('the cgroup driver follows the host', async (t) => {
  const root = await folder(t);
  const driver = async () => (await loadConfig(undefined, {}, { hostRoot: root })).cgroupDriver;
  assert.equal(await driver(), 'cgroupfs');
  await mkdir(join(root, 'run/systemd/system'), { recursive: true });
  assert.equal(await driver(), 'cgroupfs');
  await mkdir(join(root, 'sys/fs/cgroup'), { recursive: true });
  await writeFile(join(root, 'sys/fs/cgroup/cgroup.controllers'), 'cpu');
  assert.equal(await driver(), 'systemd');
});

test('the verbosity chooses the log level', async () => {
  const level = async (verbosity: number) =>
    (await loadConfig(undefined, { logging: { verbosity } })).logLevel;
  assert.deepEqual(await Promise.all([0, 3, 4, 5, 6, 10].map(level)), [
    'info',
    'info',
    'debug',
    'debug',
    'trace',
    'trace',
  ]);
});

test('a missing, huge or alias-bombed file is an error that says so', async (t) => {
  await assert.rejects(loadConfig('/nonexistent/config.yaml'), (error) => isError(error, 'CONFIG_INVALID'));
  assert.match((await faultOf(t, `# ${'x'.repeat(1 << 20)}`)).message, /bytes/);
  const bomb = ['a: &a [x,x,x,x,x,x,x,x,x]'];
  for (let i = 1; i < 9; i++) {
    const above = String.fromCharCode(96 + i);
    bomb.push(
      `${String.fromCharCode(97 + i)}: &${String.fromCharCode(97 + i)} [${Array(9).fill(`*${above}`).join(',')}]`,
    );
  }
  assert.match((await faultOf(t, bomb.join('\n'))).message, /not valid YAML/);
});

test('mutated files are accepted or refused with CONFIG_INVALID, nothing else', async (t) => {
  const file = join(await folder(t), 'config.yaml');
  let seed = 42;
  const random = (below: number) => {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return seed % below;
  };
  const alphabet = '\0\t\n :-[]{}&*!|>%@`"\'#?,abc019~é\ud800';
  for (let round = 0; round < 250; round++) {
    const bytes = [...kubeadmFile];
    for (let change = 0; change <= random(4); change++) {
      bytes.splice(random(bytes.length), random(6), alphabet[random(alphabet.length)]!.repeat(1 + random(3)));
    }
    await writeFile(file, bytes.join(''));
    try {
      await loadConfig(file);
    } catch (error) {
      assert.ok(isError(error, 'CONFIG_INVALID'), `seed 42 round ${round}: ${(error as Error).stack}`);
    }
  }
});
