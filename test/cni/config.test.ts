import assert from 'node:assert/strict';
import { test } from 'node:test';
import { addPlugin, parseNetwork } from '../../cni/config.ts';
import { KeelsonError } from '../../runtime/host/errors.ts';

const list = {
  cniVersion: '1.0.0',
  name: 'pods',
  plugins: [
    { type: 'bridge', ipam: { type: 'host-local', subnet: '10.1.0.0/24' } },
    { type: 'portmap', capabilities: { portMappings: true, bandwidth: false } },
  ],
};
const parse = (value: unknown) =>
  parseNetwork(typeof value === 'string' ? value : JSON.stringify(value), 'x.conflist');

test('a list is read with its plugins, capabilities and IPAM type', () => {
  const network = parse(list);
  assert.equal(network.name, 'pods');
  assert.deepEqual(network.versions, ['1.0.0']);
  assert.deepEqual(
    network.plugins.map(({ type, capabilities, ipamType }) => ({ type, capabilities, ipamType })),
    [
      { type: 'bridge', capabilities: [], ipamType: 'host-local' },
      { type: 'portmap', capabilities: ['portMappings'], ipamType: undefined },
    ],
  );
  assert.equal(network.text, JSON.stringify(list));
});

test('a single plugin becomes a list of one that can be read again', () => {
  const network = parse({ cniVersion: '0.4.0', name: 'one', type: 'ptp', ipam: { type: 'static' } });
  assert.equal(network.plugins.length, 1);
  assert.equal(network.plugins[0]!.type, 'ptp');
  const again = parse(network.text);
  assert.deepEqual({ ...again, text: '' }, { ...network, text: '' });
});

for (const [name, change, wanted] of [
  ['one version', { cniVersion: '0.3.1' }, ['0.3.1']],
  ['versions in any order', { cniVersions: ['1.1.0', '0.4.0'] }, ['0.4.0', '1.0.0', '1.1.0']],
  ['a version from the future is left out', { cniVersions: ['1.1.0', '2.0.0'] }, ['1.0.0', '1.1.0']],
  ['versions without cniVersion', { cniVersion: undefined, cniVersions: ['1.0.0'] }, ['1.0.0']],
] as const) {
  test(`versions: ${name}`, () => assert.deepEqual(parse({ ...list, ...change }).versions, wanted));
}

for (const [name, value, message] of [
  ['zero length', '', /is empty/],
  ['zeroes of a power cut', '\0'.repeat(512), /not JSON/],
  ['half a file', JSON.stringify(list).slice(0, 60), /not JSON/],
  ['an array', [], /must be a JSON object/],
  ['no name', { ...list, name: undefined }, /"name"/],
  ['a name that is a path', { ...list, name: '../../etc/passwd' }, /"name"/],
  ['an empty list', { ...list, plugins: [] }, /at least one plugin/],
  ['plugins that are no list', { ...list, plugins: {} }, /"plugins"/],
  ['a plugin without a type', { ...list, plugins: [{}] }, /plugin 1 needs "type"/],
  ['a type that is a path', { ...list, plugins: [{ type: '../sh' }] }, /plugin 1 needs "type"/],
  ['a type that is a folder', { ...list, plugins: [{ type: '..' }] }, /plugin 1 needs "type"/],
  [
    'capabilities that are a list',
    { ...list, plugins: [{ type: 'a', capabilities: ['x'] }] },
    /"capabilities"/,
  ],
  ['no version', { ...list, cniVersion: undefined }, /"cniVersion" is missing/],
  ['a version that is too old', { ...list, cniVersion: '0.2.0' }, /none of its versions \(0.2.0\)/],
  ['a version that is a number', { ...list, cniVersion: 1 }, /"cniVersion" must be a string/],
  ['a strange flag', { ...list, disableCheck: 'maybe' }, /"disableCheck"/],
  [
    'no plugins although only inlined ones',
    { ...list, plugins: undefined, loadOnlyInlinedPlugins: true },
    /"plugins"/,
  ],
] as const) {
  test(`refused with the file's name: ${name}`, () => {
    assert.throws(
      () => parse(value),
      (error) => {
        assert.ok(error instanceof KeelsonError);
        assert.equal(error.code, 'CNI_CONFIG_INVALID');
        assert.match(error.message, /x\.conflist/);
        assert.match(error.message, message);
        return true;
      },
    );
  });
}

test('flags may be strings, as libcni allows', () => {
  assert.equal(parse({ ...list, disableCheck: 'True' }).disableCheck, true);
  assert.equal(parse({ ...list, disableGC: true }).disableGc, true);
  assert.equal(parse({ ...list, disableGC: 'false' }).disableGc, false);
});

test('a plugin of the folder goes to the end, and the text stands alone', () => {
  const network = addPlugin(parse(list), JSON.stringify({ type: 'tuning', mtu: 1400 }), 'pods/10.conf');
  assert.deepEqual(
    network.plugins.map(({ type }) => type),
    ['bridge', 'portmap', 'tuning'],
  );
  const again = parse(network.text);
  assert.equal(again.readsPluginFolder, false);
  assert.deepEqual(again.plugins, network.plugins);
});

test('fuzz: any bytes give a network or CNI_CONFIG_INVALID', () => {
  const seeds = [
    JSON.stringify(list),
    JSON.stringify({ cniVersion: '1.0.0', name: 'a', type: 'b', ipam: {} }),
  ];
  const pieces = [
    '{',
    '}',
    '[',
    ']',
    '"',
    ':',
    ',',
    'null',
    'true',
    '1e999',
    '"plugins"',
    '"type"',
    '"__proto__"',
    '\0',
    '\u{1f600}',
  ];
  let state = 12345;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  let valid = 0;
  for (let round = 0; round < 20_000; round++) {
    let text = seeds[random(seeds.length)]!;
    for (let change = random(4); change >= 0; change--) {
      const at = random(text.length + 1);
      text =
        text.slice(0, at) +
        (random(2) === 0 ? pieces[random(pieces.length)] : '') +
        text.slice(at + random(5));
    }
    try {
      const network = parse(text);
      assert.ok(network.plugins.length > 0 || network.readsPluginFolder);
      valid++;
    } catch (error) {
      assert.ok(error instanceof KeelsonError && error.code === 'CNI_CONFIG_INVALID', `${text}: ${error}`);
    }
  }
  assert.ok(valid > 100, `only ${valid} mutations were still valid`);
});
