/** containerd's hosts.toml: what is read, and what is refused with words that help. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type HostsFile, parseHostsToml } from '../../images/registry/hosts_toml.ts';
import { isError } from '../../runtime/host/errors.ts';

const file = '/etc/keelson/certs.d/docker.io/hosts.toml';
const parse = (text: string): HostsFile => parseHostsToml(text, file, '/etc/keelson/certs.d/docker.io');
const firstOf = (text: string) => parse(`[host."https://m.example"]\n${text}`).hosts[0]!;

test('a file with everything is read', () => {
  const found = parse(`
server = "https://registry-1.docker.io"
ca = "up.pem"
[host."https://first.example:5000"]
  capabilities = ["pull"]
  ca = ["a.pem", "/abs/b.pem"]
  client = [["c.cert", "c.key"], ["both.pem", ""]]
  skip_verify = true
  dial_timeout = "1.5s"
  proxy = "http://proxy.example:3128"
  [host."https://first.example:5000".header]
    x-one = "1"
    X-Two = ["a", "b"]
[host."http://second.example/some/path"]
[host."third.example"]
  capabilities = ["Pull", "RESOLVE"]
  override_path = true
`);
  assert.deepEqual(found.server, { scheme: 'https', host: 'registry-1.docker.io', path: '/v2' });
  assert.deepEqual(found.serverSettings.ca, ['/etc/keelson/certs.d/docker.io/up.pem']);
  const [first, second, third] = found.hosts;
  assert.deepEqual(first, {
    scheme: 'https',
    host: 'first.example:5000',
    path: '/v2',
    capabilities: new Set(['pull']),
    ca: ['/etc/keelson/certs.d/docker.io/a.pem', '/abs/b.pem'],
    client: [
      { cert: '/etc/keelson/certs.d/docker.io/c.cert', key: '/etc/keelson/certs.d/docker.io/c.key' },
      { cert: '/etc/keelson/certs.d/docker.io/both.pem', key: undefined },
    ],
    skipVerify: true,
    headers: { 'x-one': '1', 'x-two': 'a, b' },
    dialTimeoutMs: 1500,
    proxy: new URL('http://proxy.example:3128'),
  });
  assert.deepEqual([second?.scheme, second?.host, second?.path], ['http', 'second.example', '/some/path/v2']);
  assert.deepEqual(second?.capabilities, new Set(['pull', 'resolve', 'push']));
  assert.deepEqual([third?.scheme, third?.host, third?.path], ['https', 'third.example', '']);
  assert.deepEqual(third?.capabilities, new Set(['pull', 'resolve']));
});

test('hosts keep the order of the file, sub-tables and other tables between them or not', () => {
  const names = ['z.example', 'a.example', 'http://m.example', '10.0.0.9', 'b.example:1', '[::1]:5000'];
  const text = names
    .map((name, at) => `[host."${name}"]\n[other${at}]\n[host."${name}".header]\nx = "y"\n`)
    .join('');
  assert.deepEqual(
    parse(text).hosts.map(({ host }) => host),
    ['z.example', 'a.example', 'm.example', '10.0.0.9', 'b.example:1', '[::1]:5000'],
  );
  assert.deepEqual(
    parse(
      '[host]\n[host."b.example".header]\nx = "1"\n[host."a.example"]\n[host."b.example"]\nskip_verify = true',
    ).hosts.map(({ host, skipVerify }) => [host, skipVerify]),
    [
      ['b.example', true],
      ['a.example', undefined],
    ],
  );
});

const paths: readonly (readonly [url: string, override: boolean, path: string])[] = [
  ['https://m.example', false, '/v2'],
  ['https://m.example/', false, '/v2'],
  ['https://m.example/v2', false, '/v2'],
  ['https://m.example/v2/', false, '/v2'],
  ['https://m.example/a', false, '/a/v2'],
  ['https://m.example/v2/a', false, '/v2/a/v2'],
  ['https://m.example/v2/a', true, '/v2/a'],
  ['https://m.example//a/../b/', true, '/b'],
  ['https://m.example', true, ''],
  ['m.example/harbor', false, '/harbor/v2'],
  ['https://user:secret@m.example/?x=y#z', false, '/v2'],
];

test('the API is below /v2 unless the path is to be taken as it is', () => {
  for (const [url, override, path] of paths) {
    const [found] = parse(`[host."${url}"]\noverride_path = ${override}`).hosts;
    assert.deepEqual([found?.host, found?.path], ['m.example', path], url);
  }
});

test('no server, an empty one and one are different things', () => {
  assert.equal(parse('[host."m.example"]').server, undefined);
  assert.equal(parse('server = ""\n[host."m.example"]').server, 'none');
  assert.deepEqual(parse('server = "m.example"').server, { scheme: 'https', host: 'm.example', path: '/v2' });
  assert.deepEqual(parse('server = "http://m.example/x"\noverride_path = true').server, {
    scheme: 'http',
    host: 'm.example',
    path: '/x',
  });
  assert.deepEqual(parse('# nothing').hosts, []);
});

test('client certificates: one file, a list of files, a list of pairs', () => {
  assert.deepEqual(firstOf('client = "/c.pem"').client, [{ cert: '/c.pem', key: undefined }]);
  assert.deepEqual(firstOf('client = ["/c.pem", "/d.pem"]').client, [
    { cert: '/c.pem', key: undefined },
    { cert: '/d.pem', key: undefined },
  ]);
  assert.deepEqual(firstOf('client = [["/c", "/k"], "/d"]').client, [
    { cert: '/c', key: '/k' },
    { cert: '/d', key: undefined },
  ]);
  assert.deepEqual(firstOf('').client, []);
});

test('durations as Go writes them', () => {
  const good: readonly (readonly [string, number | undefined])[] = [
    ['3s', 3000],
    ['500ms', 500],
    ['1m30s', 90_000],
    ['.5s', 500],
    ['1.25s', 1250],
    ['2h', 7_200_000],
    ['100us', 1],
    ['0', 0],
    ['0s', 0],
    ['+1s', 1000],
    ['', undefined],
  ];
  for (const [text, ms] of good) assert.equal(firstOf(`dial_timeout = "${text}"`).dialTimeoutMs, ms, text);
  for (const text of ['3', 's', '-1s', '1 s', '1d', 'Infinity', '1e3s', '999999999999h', '1.s.']) {
    assert.throws(() => firstOf(`dial_timeout = "${text}"`), { message: /dial_timeout: expected/ }, text);
  }
});

const refused: readonly (readonly [text: string, message: RegExp])[] = [
  ['server = 5', /: server: expected a text/],
  ['server = "ftp://m.example"', /: server: expected a URL/],
  ['server = "https://"', /: server: expected a URL/],
  ['host = "m.example"', /: host: expected tables/],
  ['host = ["m.example"]', /: host: expected tables/],
  ['[host]\n"m.example" = 5', /: host\."m\.example": expected a table/],
  ['[host."a b"]', /: host\."a b": expected a URL/],
  ['[host."5000"]', /: host\."5000": expected a URL/],
  ['[host.""]', /: host\."": expected a URL/],
  ['[host."unix:///x"]', /: host\."unix:\/\/\/x": expected a URL/],
  ['capabilities = "pull"', /: capabilities: expected a list of "pull"/],
  ['[host."m"]\ncapabilities = ["fetch"]', /: host\."m": capabilities: expected/],
  ['[host."m"]\ncapabilities = [1]', /: host\."m": capabilities: expected/],
  ['[host."m"]\nca = 5', /: host\."m": ca: expected/],
  ['[host."m"]\nca = [""]', /: host\."m": ca: expected/],
  ['[host."m"]\nclient = 5', /: host\."m": client: expected/],
  ['[host."m"]\nclient = [["a"]]', /: host\."m": client: expected/],
  ['[host."m"]\nclient = [["a", "b", "c"]]', /: host\."m": client: expected/],
  ['[host."m"]\nclient = [[]]', /: host\."m": client: expected/],
  ['[host."m"]\nclient = [5]', /: host\."m": client: expected/],
  ['[host."m"]\nclient = ""', /: host\."m": client: expected/],
  ['[host."m"]\nskip_verify = "yes"', /: host\."m": skip_verify: expected true or false/],
  ['[host."m"]\noverride_path = 1', /: host\."m": override_path: expected true or false/],
  ['[host."m"]\ndial_timeout = 3', /: host\."m": dial_timeout: expected a duration/],
  ['[host."m"]\nheader = "x"', /: host\."m": header: expected a table/],
  ['[host."m"]\nheader = { "a b" = "x" }', /: host\."m": header\."a b": expected the name/],
  ['[host."m"]\nheader = { Host = "x" }', /: host\."m": header\."Host": expected the name/],
  ['[host."m"]\nheader = { a = 5 }', /: host\."m": header\."a": expected a text/],
  ['[host."m"]\nheader = { a = "secret\\r\\nx: y" }', /: host\."m": header\."a": expected a text/],
  ['[host."m"]\nproxy = "socks5://p"', /: host\."m": proxy: expected a URL/],
  ['[host."m"]\nproxy = "http://p/path"', /: host\."m": proxy: expected a URL/],
  ['authorization = "secret', /: line 1, column \d+: /],
  ['[host."m"]\n[host."m"]', /: line \d, column \d+: /],
];

test('what cannot be right is refused with file, field and what is expected, and without the value', () => {
  for (const [text, message] of refused) {
    assert.throws(
      () => parse(text),
      (error) =>
        isError(error, 'CONFIG_INVALID') &&
        error.message.startsWith(file) &&
        message.test(error.message) &&
        !error.message.includes('secret') &&
        error.hint !== undefined,
      text,
    );
  }
  assert.throws(() => parse('#'.repeat(2 << 20)), { code: 'CONFIG_INVALID' });
});

test('fields that nobody knows are ignored', () => {
  assert.equal(parse('future = 1\n[host."m.example"]\nfuture = true\n[plugins]\nx = 1').hosts.length, 1);
});
