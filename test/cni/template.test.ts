/** A network configuration from a template and the node's pod CIDRs. */
import assert from 'node:assert/strict';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { makePodCidrs, renderTemplate, valuesOf } from '../../cni/template.ts';
import { isError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';

const both = valuesOf('10.1.0.0/24, fd00:1::/64');

test('values of one family and of two; what is no range', () => {
  assert.deepEqual(valuesOf('10.1.0.0/24'), {
    PodCIDR: '10.1.0.0/24',
    PodCIDRRanges: ['10.1.0.0/24'],
    Routes: ['0.0.0.0/0'],
  });
  assert.deepEqual(both.Routes, ['0.0.0.0/0', '::/0']);
  assert.deepEqual(valuesOf('fd00::/64').Routes, ['::/0']);
  for (const wrong of ['10.1.0.0', '10.1.0.0/33', '10.1.0/24', 'fd00::/129', '10.1.0.0/24,', '"/24', ' ']) {
    assert.throws(
      () => valuesOf(wrong),
      (error) => isError(error, 'INVALID_ARGUMENT'),
      wrong,
    );
  }
});

test('what is understood of Go templates', () => {
  const cases: [string, string][] = [
    ['', ''],
    ['no action { } }}', 'no action { } }}'],
    ['<{{.PodCIDR}}>', '<10.1.0.0/24>'],
    ['<{{ .PodCIDR }}>', '<10.1.0.0/24>'],
    ['{{range .Routes}}({{.}}){{end}}', '(0.0.0.0/0)(::/0)'],
    ['{{range $r := .Routes}}({{$r}}{{.}}){{end}}', '(0.0.0.0/00.0.0.0/0)(::/0::/0)'],
    [
      '[{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}"{{$range}}"{{end}}]',
      '["10.1.0.0/24", "fd00:1::/64"]',
    ],
    ['{{if .Routes}}yes{{else}}no{{end}}', 'yes'],
    ['{{range $i, $r := .Routes}}{{if $i}}later{{else}}first{{end}} {{end}}', 'first later '],
    ['a \n {{- .PodCIDR -}} \n b', 'a10.1.0.0/24b'],
    ['{{.Routes}}', '[0.0.0.0/0 ::/0]'],
  ];
  for (const [text, wanted] of cases) assert.equal(renderTemplate(text, both), wanted, text);
  for (const wrong of [
    ...['{{}}', '{{.Nothing}}', '{{$x}}', '{{len .Routes}}', '{{.PodCIDR | printf}}', '{{template "x"}}'],
    ...['{{range .Routes}}', '{{end}}', '{{else}}', '{{if .Routes}}x{{else}}y', '{{range .PodCIDR}}{{end}}'],
    '{{range $r := .Routes}}{{end}}{{$r}}',
  ]) {
    assert.throws(
      () => renderTemplate(wrong, both),
      (error) => isError(error, 'CNI_CONFIG_INVALID'),
      wrong,
    );
  }
});

const conflist = `{"cniVersion": "1.0.0", "name": "made", "plugins": [{"type": "ptp", "ipam": {"type": "host-local",
  "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
  "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}`;

async function stage(t: TestContext, text = conflist) {
  const root = await mkdtemp(join(tmpdir(), 'keelson-test-'));
  t.after(() => rm(root, { recursive: true, force: true }));
  const [template, confDir] = [join(root, 'template'), join(root, 'net.d')];
  await writeFile(template, text);
  const told = makePodCidrs({ template, confDirs: [confDir], log: makeLogger('silent') });
  return { template, confDir, told, files: () => readdir(confDir).catch(() => []) };
}

test('the file is made once, where there is no network yet', async (t) => {
  const { confDir, told, files } = await stage(t);
  await told('');
  assert.deepEqual(await files(), []);
  await told('10.1.0.0/24,fd00:1::/64');
  assert.deepEqual(await files(), ['10-keelson-net.conflist']);
  const read = () => readFile(join(confDir, '10-keelson-net.conflist'), 'utf8');
  const { ipam } = JSON.parse(await read()).plugins[0];
  assert.deepEqual(ipam.ranges, [[{ subnet: '10.1.0.0/24' }], [{ subnet: 'fd00:1::/64' }]]);
  assert.deepEqual(ipam.routes, [{ dst: '0.0.0.0/0' }, { dst: '::/0' }]);
  const before = await read();
  await told('10.9.0.0/24');
  assert.equal(await read(), before);
  await rm(join(confDir, '10-keelson-net.conflist'));
  const other = '{"cniVersion": "1.0.0", "name": "other", "type": "bridge"}';
  await writeFile(join(confDir, '20-other.conf'), other);
  await told('10.9.0.0/24');
  assert.deepEqual(await files(), ['20-other.conf'], 'the network that is there stays the only one');
});

test('templates that are not there, or make nothing that is a network, change nothing', async (t) => {
  for (const text of ['{{.Nothing}}', '{}', 'not JSON {{.PodCIDR}}']) {
    const { told, files } = await stage(t, text);
    await assert.rejects(told('10.1.0.0/24'), (error) => isError(error, 'CNI_CONFIG_INVALID'), text);
    assert.deepEqual(await files(), []);
  }
  const { template, told } = await stage(t);
  await rm(template);
  await assert.rejects(told('10.1.0.0/24'), (error) => isError(error, 'CNI_CONFIG_INVALID'));
  await assert.rejects(told('nonsense'), (error) => isError(error, 'INVALID_ARGUMENT'));
});
