/** HTTP responses as they come over the wire, in pieces of any size. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { requestHead, responseReader } from '../../../../agent/pods/probes/exchange.ts';

/** Feeds `text` in pieces of `size` bytes, then the end of the connection. */
function read(text: string, size: number, limit = 10_240) {
  const bytes = Buffer.from(text, 'latin1');
  const reader = responseReader(limit);
  for (let at = 0; at < bytes.length; at += size) {
    if (reader.push(bytes.subarray(at, at + size))) return reader.result;
  }
  reader.end();
  return reader.result;
}

const whole: readonly [string, string, number, string, string?][] = [
  ['a length', 'HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more', 200, 'hello'],
  ['no length', 'HTTP/1.0 200 OK\r\n\r\nhello', 200, 'hello'],
  ['bare line ends', 'HTTP/1.1 200 OK\nContent-Length: 2\n\nok', 200, 'ok'],
  ['no reason', 'HTTP/1.1 503\r\ncontent-length: 0\r\n\r\n', 503, ''],
  ['nothing in it', 'HTTP/1.1 204 No Content\r\n\r\n', 204, ''],
  ['not modified', 'HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n', 304, ''],
  ['a redirect', 'HTTP/1.1 302 Found\r\nLocation:  /x \r\nContent-Length: 0\r\n\r\n', 302, '', '/x'],
  [
    'an interim answer',
    'HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx',
    200,
    'x',
  ],
  [
    'chunks',
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n',
    200,
    'abc0123456789',
  ],
];

test('a response is the same in pieces of every size', () => {
  for (const [name, text, status, body, location] of whole) {
    for (let size = 1; size <= text.length; size++) {
      const found = read(text, size);
      assert.deepEqual(
        [found.status, found.body.toString(), found.location],
        [status, body, location],
        `${name}, by ${size}`,
      );
    }
  }
});

test('no more of a body is read than is wanted', () => {
  const head = 'HTTP/1.1 200 OK\r\n';
  assert.equal(read(`${head}\r\n${'x'.repeat(100)}`, 7, 10).body.length, 10);
  assert.equal(read(`${head}Content-Length: 100\r\n\r\n${'x'.repeat(100)}`, 7, 10).body.length, 10);
  const chunk = `64\r\n${'x'.repeat(100)}\r\n`;
  assert.equal(read(`${head}Transfer-Encoding: chunked\r\n\r\n${chunk}`, 7, 10).body.length, 10);
});

test('what is cut off or no HTTP is an error', () => {
  const bad: readonly [string, RegExp][] = [
    ['', /^EOF$/],
    ['HTTP/1.1 200 OK\r\nContent-Le', /^EOF$/],
    ['HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell', /unexpected EOF/],
    ['HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n', /bad Content-Length/],
    ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab', /unexpected EOF/],
    ['HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', /invalid chunk/],
    ['SSH-2.0-OpenSSH_9.2\r\n', /malformed HTTP response "S/],
    ['HTTP/1.1 abc\r\n\r\n', /malformed HTTP response/],
    [`HTTP/1.1 200 OK\r\nx: ${'y'.repeat(70_000)}`, /too long/],
  ];
  for (const [text, message] of bad) {
    for (const size of [1, 3, 100_000]) {
      if (size === 1 && text.length > 1000) continue;
      assert.throws(() => read(text, size), { message }, `${text.slice(0, 40)} by ${size}`);
    }
  }
});

test('a request has one Host and closes the connection', () => {
  assert.equal(
    requestHead('/a?b', '10.0.0.1:80', { 'X-A': ['1', '2'], hOST: 'name', Connection: 'keep-alive' }),
    'GET /a?b HTTP/1.1\r\nHost: name\r\nX-A: 1\r\nX-A: 2\r\nConnection: close\r\n\r\n',
  );
  assert.throws(() => requestHead('/', 'h', { A: 'x\r\nB: y' }));
});
