/** HTTP proxies: which requests go through one, and that they do. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createServer, request as httpRequest, type IncomingMessage } from 'node:http';
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net';
import { test } from 'node:test';
import { parseNoProxy, parseProxy, proxyRules } from '../../images/registry/proxy.ts';
import { describe } from '../../runtime/host/errors.ts';
import { makeHttpClient } from '../../runtime/host/http.ts';
import { makeAuthority } from '../peers/certificates.ts';
import { startFakeRegistry } from '../peers/fake-registry.ts';
import { buildImage } from '../peers/image.ts';
import { openImages, temporaryFolder } from '../peers/image-store.ts';

const skip = process.getuid?.() === 0 ? false : 'needs root';

const noProxy: readonly (readonly [rules: string, host: string, port: string, excluded: boolean])[] = [
  ['', 'a.example', '443', false],
  ['', 'localhost', '443', true],
  ['', '127.0.0.1', '80', true],
  ['', '127.9.9.9', '80', true],
  ['', '::1', '80', true],
  ['', '::ffff:127.0.0.1', '80', true],
  ['', 'localhost.example', '443', false],
  ['*', 'a.example', '443', true],
  ['a.example, *', 'b.example', '443', true],
  ['*', '10.0.0.1', '443', true],
  ['a.example', 'a.example', '443', true],
  ['a.example', 'b.a.example', '443', true],
  ['a.example', 'ba.example', '443', false],
  ['a.example', 'a.example.org', '443', false],
  ['A.Example', 'a.eXample', '443', true],
  ['.a.example', 'a.example', '443', false],
  ['.a.example', 'b.a.example', '443', true],
  ['.a.example', 'c.b.a.example', '443', true],
  ['*.a.example', 'a.example', '443', false],
  ['*.a.example', 'b.a.example', '443', true],
  ['*a.example', 'ba.example', '443', false],
  ['a.example:8080', 'a.example', '443', false],
  ['a.example:8080', 'a.example', '8080', true],
  ['a.example:8080', 'b.a.example', '8080', true],
  ['.a.example:8080', 'b.a.example', '8080', true],
  ['.a.example:8080', 'a.example', '8080', false],
  ['10.0.0.1', '10.0.0.1', '443', true],
  ['10.0.0.1', '10.0.0.2', '443', false],
  ['10.0.0.1', '::ffff:10.0.0.1', '443', true],
  ['10.0.0.1:80', '10.0.0.1', '443', false],
  ['10.0.0.1:80', '10.0.0.1', '80', true],
  ['10.0.0.0/8', '10.200.3.4', '443', true],
  ['10.0.0.0/8', '11.0.0.1', '443', false],
  ['10.1.2.3/16', '10.1.9.9', '443', true],
  ['0.0.0.0/0', '8.8.8.8', '443', true],
  ['0.0.0.0/0', 'a.example', '443', false],
  ['10.0.0.0/33', '10.0.0.1', '443', false],
  ['10.0.0.0/', '10.0.0.0', '443', false],
  ['fd00::/8', 'fd12::1', '443', true],
  ['fd00::/8', 'fe80::1', '443', false],
  ['fd12::1', 'fd12:0:0::1', '443', true],
  ['[fd12::1]', 'fd12::1', '443', true],
  ['[fd12::1]:80', 'fd12::1', '443', false],
  ['[fd12::1]:80', 'fd12::1', '80', true],
  ['fe80::1%eth0', 'fe80::1', '80', false],
  [':80', 'a.example', '80', false],
  [',, ,', 'a.example', '80', false],
  ['  a.example  ,b.example', 'b.example', '80', true],
  ['a.example b.example', 'a.example', '80', false],
  ['example', 'example', '80', true],
  ['bücher.example', 'xn--bcher-kva.example', '80', true],
  ['.bücher.example', 'a.xn--bcher-kva.example', '80', true],
  ['https://a.example', 'a.example', '443', false],
];

test('NO_PROXY means what it means for Go', () => {
  for (const [rules, host, port, excluded] of noProxy) {
    assert.equal(parseNoProxy(rules)(host, port), excluded, `${JSON.stringify(rules)} ${host}:${port}`);
  }
});

test('the proxy is chosen by scheme; upper case wins; what is no URL is ignored', () => {
  const rules = proxyRules({
    HTTP_PROXY: 'upper.example:3128',
    http_proxy: 'http://lower.example',
    https_proxy: 'https://u:p@secure.example',
    ALL_PROXY: 'http://all.example',
    NO_PROXY: '',
    no_proxy: 'direct.example:8443,[fd00::1]',
  });
  const proxyFor = (url: string) => rules.proxyFor(new URL(url))?.href;
  assert.equal(proxyFor('http://a.example/x'), 'http://upper.example:3128/');
  assert.equal(proxyFor('https://a.example/x'), 'https://u:p@secure.example/');
  assert.equal(proxyFor('https://direct.example/x'), 'https://u:p@secure.example/');
  assert.equal(proxyFor('https://direct.example:8443/x'), undefined);
  assert.equal(proxyFor('https://[fd00::1]/x'), undefined);
  assert.equal(proxyFor('http://127.0.0.1:5000/'), undefined);
  const none = proxyRules({ ALL_PROXY: 'http://all.example' });
  assert.equal(none.proxyFor(new URL('https://a.example')), undefined);
  const implied = proxyRules({ HTTPS_PROXY: 'http://p.example', NO_PROXY: 'a.example:443' });
  assert.equal(implied.proxyFor(new URL('https://a.example')), undefined);
  assert.ok(implied.proxyFor(new URL('https://a.example:444')));
  for (const [text, href] of [
    ['p.example', 'http://p.example/'],
    ['p.example:1', 'http://p.example:1/'],
    [' http://p.example ', 'http://p.example/'],
    ['10.0.0.1:3128', 'http://10.0.0.1:3128/'],
    ['socks5://p.example', undefined],
    ['', undefined],
    ['http://', undefined],
    ['a b', undefined],
  ] as const) {
    assert.equal(parseProxy(text)?.href, href, text);
  }
});

interface Proxy {
  readonly url: string;
  readonly seen: { readonly line: string; readonly authorization: string | undefined }[];
}

/** A proxy that leads every request to `host`, whatever it is for, and wants `user:pass word`. */
async function startProxy(t: { after(fn: () => Promise<void>): void }, host: string): Promise<Proxy> {
  const wanted = `Basic ${Buffer.from('user:pass word').toString('base64')}`;
  const seen: { line: string; authorization: string | undefined }[] = [];
  const [address, port] = [host.split(':')[0]!, Number(host.split(':')[1])];
  const note = ({ method, url, headers }: IncomingMessage) => {
    seen.push({ line: `${method} ${url}`, authorization: headers['proxy-authorization'] });
    return headers['proxy-authorization'] === wanted;
  };
  const sockets = new Set<{ destroy(): void }>();
  const server = createServer((request, response) => {
    if (!note(request)) return void response.writeHead(407).end();
    const { pathname, search } = new URL(request.url ?? '');
    const { 'proxy-authorization': _, ...headers } = request.headers;
    const onward = httpRequest({ host: address, port, path: pathname + search, headers }, (answer) => {
      response.writeHead(answer.statusCode ?? 500, answer.headers);
      answer.pipe(response);
    });
    onward.end();
  });
  server.on('connect', (request, socket) => {
    if (!note(request)) return void socket.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
    const onward = connect(port, address, () => {
      socket.write('HTTP/1.1 200 OK\r\n\r\n');
      onward.pipe(socket).pipe(onward);
    });
    for (const each of [onward, socket]) {
      sockets.add(each);
      each.on('error', () => {});
    }
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.after(async () => {
    for (const socket of sockets) socket.destroy();
    server.closeAllConnections();
    server.close();
    await once(server, 'close');
  });
  return { url: `127.0.0.1:${(server.address() as AddressInfo).port}`, seen };
}

const image = buildImage({ layers: [{ files: [{ path: 'one', content: 'x'.repeat(100_000) }] }] });

test('a pull over plain http goes through the proxy, unless NO_PROXY says otherwise', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  registry.image('1', image);
  const proxy = await startProxy(t, registry.host);
  const options = { insecureRegistries: ['registry.test:5000'] };
  const { images } = await openImages(t, {
    ...options,
    environment: { HTTP_PROXY: `http://user:pass%20word@${proxy.url}` },
  });
  assert.equal(await images.pullImage({ image: 'registry.test:5000/a/b:1' }), image.id);
  assert.equal(proxy.seen[0]?.line, 'GET http://registry.test:5000/v2/a/b/manifests/1');
  assert.equal(registry.seen.length, proxy.seen.length);
  assert.equal(registry.seen[0]?.headers['host'], 'registry.test:5000');
  assert.equal(registry.seen[0]?.headers['proxy-authorization'], undefined);

  const direct = await openImages(t, {
    ...options,
    environment: { HTTP_PROXY: `http://${proxy.url}`, NO_PROXY: '.test' },
  });
  const asked = proxy.seen.length;
  await assert.rejects(direct.images.pullImage({ image: 'registry.test:5000/a/b:1' }), {
    code: 'REGISTRY_UNAVAILABLE',
  });
  assert.equal(proxy.seen.length, asked);
});

test('a pull over https goes through a tunnel, with the certificate of the registry', { skip }, async (t) => {
  const folder = temporaryFolder(t);
  const authority = await makeAuthority(folder, 'test authority');
  const pair = await authority.issue({ file: 'r', commonName: 'r', altNames: ['DNS:registry.test'] });
  const registry = await startFakeRegistry(t, {
    cert: readFileSync(pair.cert),
    key: readFileSync(pair.key),
  });
  registry.image('1', image);
  const proxy = await startProxy(t, registry.host);
  const extraCa = [readFileSync(authority.cert)];
  const http = makeHttpClient({
    tls: { extraCa },
    proxyFor: proxyRules({ HTTPS_PROXY: `http://user:pass%20word@${proxy.url}` }).proxyFor,
  });
  t.after(http.destroy);
  const url = new URL('https://registry.test/v2/a/manifests/1');
  const response = await http.request({ method: 'GET', url });
  assert.equal(response.statusCode, 200);
  assert.deepEqual(Buffer.from(await response.body.arrayBuffer()), image.manifest.data);
  assert.deepEqual(
    proxy.seen.map(({ line }) => line),
    ['CONNECT registry.test:443'],
  );

  const untrusting = makeHttpClient({
    proxyFor: () => new URL(`http://user:pass%20word@${proxy.url}`),
  });
  t.after(untrusting.destroy);
  await assert.rejects(untrusting.request({ method: 'GET', url }), { code: 'UNAVAILABLE' });
});

test('an error names the proxy, never its password', { skip }, async (t) => {
  const registry = await startFakeRegistry(t);
  const proxy = await startProxy(t, registry.host);
  for (const scheme of ['http', 'https']) {
    for (const secret of ['wrong-secret', '%zz-secret']) {
      const url = `http://someone:${secret}@${proxy.url}`;
      const { images } = await openImages(t, {
        insecureRegistries: scheme === 'http' ? ['registry.test:5000'] : [],
        environment: { [`${scheme}_proxy`]: url },
      });
      await assert.rejects(images.pullImage({ image: 'registry.test:5000/a:1' }), (error) => {
        const text = describe(error);
        assert.ok(text.includes(`through the proxy http://${proxy.url}`), text);
        assert.ok(text.includes('407'), text);
        assert.ok(!/secret|someone/.test(text), text);
        return true;
      });
    }
  }
  assert.equal(registry.seen.length, 0);
});

test('a proxy that says nothing costs the time to connect', async (t) => {
  const sockets: Socket[] = [];
  const silent = createTcpServer((socket) => {
    sockets.push(socket);
    socket.on('error', () => {});
  }).listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const { port } = silent.address() as AddressInfo;
  const http = makeHttpClient({
    connectTimeoutMs: 50,
    proxyFor: () => new URL(`http://127.0.0.1:${port}`),
  });
  t.after(async () => {
    await http.destroy();
    for (const socket of sockets) socket.destroy();
    silent.close();
    await once(silent, 'close');
  });
  await assert.rejects(http.request({ method: 'GET', url: new URL('https://registry.test/') }), {
    code: 'DEADLINE_EXCEEDED',
    message: new RegExp(`^GET https://registry.test/ through the proxy http://127.0.0.1:${port}: `),
  });
  assert.equal(sockets.length, 1);
});
