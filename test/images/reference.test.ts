import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  endpointOf,
  formatReference,
  imageIdOf,
  isAddressOf,
  isLoopback,
  parseReference,
} from '../../images/reference.ts';
import { isError } from '../../runtime/host/errors.ts';

const hex = '0123456789abcdef'.repeat(4);
const digest = `sha256:${hex}`;

const valid: readonly (readonly [text: string, normalised: string])[] = [
  ['busybox', 'docker.io/library/busybox:latest'],
  ['busybox:1.36', 'docker.io/library/busybox:1.36'],
  ['user/app', 'docker.io/user/app:latest'],
  ['docker.io/busybox', 'docker.io/library/busybox:latest'],
  ['index.docker.io/busybox', 'docker.io/library/busybox:latest'],
  ['docker.io/a/b/c:x', 'docker.io/a/b/c:x'],
  ['localhost/app', 'localhost/app:latest'],
  ['localhost:5000/app:2', 'localhost:5000/app:2'],
  ['127.0.0.1:5000/a/b', '127.0.0.1:5000/a/b:latest'],
  ['[::1]:5000/app', '[::1]:5000/app:latest'],
  ['[fe80::1]/app', '[fe80::1]/app:latest'],
  ['registry.example/app', 'registry.example/app:latest'],
  ['Registry/app', 'Registry/app:latest'],
  ['host:80/app', 'host:80/app:latest'],
  [`busybox@${digest}`, `docker.io/library/busybox@${digest}`],
  [`busybox:1@${digest}`, `docker.io/library/busybox@${digest}`],
  [`r.example:1/a@sha512:${hex}${hex}`, `r.example:1/a@sha512:${hex}${hex}`],
  ['a__b/c-_-d'.replace('-_-', '---'), 'docker.io/a__b/c---d:latest'],
  ['a.b_c', 'docker.io/library/a.b_c:latest'],
  ['app:V1.2_x-y', 'docker.io/library/app:V1.2_x-y'],
  [`app:${'t'.repeat(128)}`, `docker.io/library/app:${'t'.repeat(128)}`],
];

test('references are normalised as docker and containerd do', () => {
  for (const [text, normalised] of valid) {
    assert.equal(formatReference(parseReference(text)), normalised, text);
    assert.equal(formatReference(parseReference(normalised)), normalised, `${normalised} is stable`);
  }
});

const invalid: readonly (readonly [text: string, message: RegExp])[] = [
  ['', /empty/],
  ['Busybox', /lower case/],
  ['user/App', /lower case/],
  [':tag', /repository is missing/],
  ['app:', /not a tag/],
  ['app:.x', /not a tag/],
  ['app:a b', /not a tag/],
  [`app:${'t'.repeat(129)}`, /not a tag/],
  ['app@sha256:abc', /not a digest/],
  [`app@md5:${hex}`, /not a digest/],
  [`app@${digest.toUpperCase()}`, /not a digest/],
  [`app@${digest}@${digest}`, /not a digest/],
  [`app@__proto__:${hex}`, /not a digest/],
  [hex, /image id/],
  ['a//b', /empty/],
  ['a/', /empty/],
  ['/a', /./],
  ['-a', /in the repository/],
  ['a..b', /in the repository/],
  ['a___b', /in the repository/],
  ['a/../b', /in the repository/],
  ['http://x/y', /./],
  ['host:99999/a', /port 99999/],
  ['host:x/a', /not a registry host/],
  ['-host.example/a', /not a registry host/],
  ['[::1/a', /not a registry host/],
  ['user@host.example/a', /not a digest/],
  ['a\nb', /in the repository/],
  [`x.example/${'a'.repeat(256)}`, /longer than 255/],
  ['a'.repeat(2000), /longer than/],
];

test('what is no reference says which part is wrong', () => {
  for (const [text, message] of invalid) {
    assert.throws(
      () => parseReference(text),
      (error) => isError(error, 'IMAGE_NAME_INVALID') && message.test(error.message),
      JSON.stringify(text),
    );
  }
});

test('image ids are told from references', () => {
  assert.equal(imageIdOf(digest), digest);
  assert.equal(imageIdOf(hex), digest);
  assert.equal(imageIdOf('busybox'), undefined);
  assert.equal(imageIdOf(`busybox@${digest}`), undefined);
  assert.equal(imageIdOf(hex.toUpperCase()), undefined);
});

test('only registries of this machine are loopback', () => {
  for (const domain of ['localhost', 'localhost:5000', '127.0.0.1', '127.8.9.1:80', '[::1]', '[::1]:5000']) {
    assert.ok(isLoopback(domain), domain);
  }
  for (const domain of ['localhost.example', '127.example', '127.0.0.1.example', '128.0.0.1', '[::2]:5000']) {
    assert.ok(!isLoopback(domain), domain);
  }
});

test('credentials belong to the registry that they name', () => {
  assert.ok(isAddressOf('https://index.docker.io/v1/', 'docker.io'));
  assert.ok(isAddressOf('docker.io', 'docker.io'));
  assert.ok(isAddressOf('http://r.example:5000', 'r.example:5000'));
  assert.ok(!isAddressOf('r.example', 'r.example:5000'));
  assert.ok(!isAddressOf('https://r.example.evil/r.example', 'r.example'));
  assert.ok(!isAddressOf('index.docker.io', 'r.example'));
  assert.notEqual(endpointOf('docker.io'), 'docker.io');
  assert.equal(endpointOf('r.example:5000'), 'r.example:5000');
});
