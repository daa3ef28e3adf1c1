/** Foreign bytes, mutated: configurations, results, errors, versions, cache files. The seed runs a case again. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readCacheFile } from '../../cni/cache.ts';
import { executionConfig } from '../../cni/chain.ts';
import { addPlugin, parseNetwork } from '../../cni/config.ts';
import { readPluginError } from '../../cni/plugin.ts';
import { addressesOf, readResult, writeResult } from '../../cni/result.ts';
import { readSupported } from '../../cni/settle.ts';
import { knownVersions } from '../../cni/version.ts';
import { isError } from '../../runtime/host/errors.ts';
import { bitsPerSecond } from '../../runtime/sandbox_config.ts';
import { mutate, randomFrom } from '../peers/mutations.ts';

const seed = Number(process.env['KEELSON_FUZZ_SEED'] ?? 1);
const rounds = 8000;

const list = JSON.stringify({
  cniVersion: '0.4.0',
  cniVersions: ['1.0.0', '1.1.0'],
  name: 'pods',
  disableCheck: false,
  disableGC: 'true',
  plugins: [
    { type: 'bridge', bridge: 'b0', ipam: { type: 'host-local', ranges: [[{ subnet: '10.1.0.0/24' }]] } },
    { type: 'portmap', capabilities: { portMappings: true, mac: false }, prevResult: {} },
  ],
});
const result = JSON.stringify({
  cniVersion: '1.1.0',
  interfaces: [{ name: 'eth0', mac: '0a:00:00:00:00:01', sandbox: '/run/netns/a', mtu: 1400 }],
  ips: [
    { version: '4', address: '10.1.2.3/24', gateway: '10.1.2.1', interface: 0 },
    { address: 'fd00::3/64' },
  ],
  routes: [{ dst: '0.0.0.0/0', gw: '10.1.2.1', table: 100 }],
  dns: { nameservers: ['10.1.2.1'], search: ['a'] },
});
const cached = JSON.stringify({
  kind: 'cniCacheV1',
  containerId: 'c1',
  config: Buffer.from(list).toString('base64'),
  ifName: 'eth0',
  networkName: 'pods',
  netns: '/run/netns/a',
  cniArgs: [['IgnoreUnknown', '1']],
  capabilityArgs: { mac: '0a:00:00:00:00:01' },
  result: JSON.parse(result),
  runtime: 'keelson',
});

/** Runs `body` on mutations of the samples; returns how many it took. It may throw only what `expected` knows. */
function fuzz(
  samples: readonly string[],
  body: (text: string) => void,
  expected: (error: unknown) => boolean = () => false,
): number {
  const random = randomFrom(seed);
  let taken = 0;
  for (let round = 0; round < rounds; round++) {
    const sample = Buffer.from(samples[random(samples.length)]!);
    const text = mutate(sample, random).toString('utf8');
    try {
      body(text);
      taken++;
    } catch (error) {
      assert.ok(expected(error), `seed ${seed}, ${JSON.stringify(text)}: ${(error as Error).stack}`);
    }
  }
  return taken;
}

test(`fuzz of configurations, seed ${seed}`, () => {
  const capabilityArgs = { portMappings: [], mac: '0a:00:00:00:00:01' };
  const taken = fuzz(
    [list, JSON.stringify({ cniVersion: '1.0.0', name: 'a', type: 'b', capabilities: { mac: true } })],
    (text) => {
      const network = parseNetwork(text, 'x.conflist');
      // What is cached must be read back the same, also with a plugin from the folder.
      const more = addPlugin(network, '{"type":"tuning"}', 'x.conf');
      assert.deepEqual(parseNetwork(more.text, 'cached').plugins, more.plugins);
      for (const plugin of network.plugins) {
        assert.doesNotMatch(plugin.type, /[/\0]/);
        const told = JSON.parse(
          executionConfig({ network, version: network.versions[0]! }, plugin, { capabilityArgs }),
        );
        assert.deepEqual([told.name, told.type], [network.name, plugin.type]);
        for (const name of plugin.capabilities) {
          assert.deepEqual(told.runtimeConfig?.[name], capabilityArgs[name as 'mac']);
        }
      }
    },
    (error) => isError(error, 'CNI_CONFIG_INVALID'),
  );
  assert.ok(taken > rounds / 100, `only ${taken} mutations were still valid`);
});

test(`fuzz of results, seed ${seed}`, () => {
  const taken = fuzz(
    [result],
    (text) => {
      let value: unknown;
      try {
        value = JSON.parse(text);
      } catch {
        return;
      }
      const read = readResult(value, '1.0.0');
      for (const version of knownVersions) {
        const again = readResult(writeResult(read, version), version);
        assert.deepEqual(addressesOf(again, 'eth0'), addressesOf(read, 'eth0'));
        assert.deepEqual(again.routes, read.routes);
      }
      for (const address of addressesOf(read, 'eth0')) assert.match(address, /^[0-9a-fA-F.:]+$/);
    },
    (error) => (error as Error).constructor.name === 'ResultProblem',
  );
  assert.ok(taken > rounds / 100, `only ${taken} mutations were still valid`);
});

test(`fuzz of what is read without complaint, seed ${seed}`, () => {
  const found = { cached: 0, errors: 0, versions: 0, rates: 0 };
  fuzz([cached], (text) => {
    const entry = readCacheFile(text);
    if (entry === undefined) return;
    found.cached++;
    for (const name of [entry.networkName, entry.containerId, entry.ifName]) assert.match(name, /^[^/\0]+$/);
    assert.ok(entry.cniArgs.every((pair) => pair.every((word) => typeof word === 'string')));
  });
  fuzz(['{"cniVersion":"1.0.0","code":11,"msg":"try again","details":"later"}'], (text) => {
    const error = readPluginError(text);
    if (error === undefined) return;
    found.errors++;
    assert.ok(error.message.length <= 2000 && typeof error.code === 'number');
  });
  fuzz(['{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}'], (text) => {
    found.versions += readSupported(text).length;
  });
  fuzz(['10M', '1.5Gi', '1e6', '.5k', '123456'], (text) => {
    const rate = bitsPerSecond(text);
    if (rate === undefined) return;
    found.rates++;
    assert.ok(rate >= 0 && !Number.isNaN(rate));
  });
  for (const [what, count] of Object.entries(found)) assert.ok(count > 100, `${what}: ${count}`);
});
