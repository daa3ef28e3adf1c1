import assert from 'node:assert/strict';
import { test } from 'node:test';
import { attributesOf, parseTarget, routeOf } from '../../../agent/api/request.ts';
import { isError } from '../../../runtime/host/errors.ts';

const route = (target: string) => routeOf(parseTarget(target));
const asked = (method: string, target: string) =>
  attributesOf(method, parseTarget(target)).map(({ verb, subresource }) => `${verb} ${subresource}`);

for (const [target, wanted] of [
  ['/healthz', { kind: 'healthz', check: '' }],
  ['/healthz/', { kind: 'healthz', check: '' }],
  ['/healthz/ping?verbose', { kind: 'healthz', check: 'ping' }],
  ['/healthz/a/b', { kind: 'unknown' }],
  ['/pods', { kind: 'pods' }],
  ['/pods/', { kind: 'pods' }],
  ['/pods/x', { kind: 'unknown' }],
  ['/metrics', { kind: 'metrics', page: '' }],
  ['/metrics/', { kind: 'metrics', page: '' }],
  ['/metrics/resource', { kind: 'metrics', page: 'resource' }],
  ['/metrics/cadvisor', { kind: 'metrics', page: 'cadvisor' }],
  ['/metrics/probes', { kind: 'metrics', page: 'probes' }],
  ['/metrics/resource/x', { kind: 'unknown' }],
  ['/stats/summary?only_cpu_and_memory=true', { kind: 'summary' }],
  ['/stats', { kind: 'unknown' }],
  ['/stats/container', { kind: 'unknown' }],
  ['/configz', { kind: 'configz' }],
  ['/runningpods/', { kind: 'runningpods' }],
  ['/runningpods/x', { kind: 'unknown' }],
  ['/logs', { kind: 'logs', path: [], folder: false }],
  ['/logs/', { kind: 'logs', path: [], folder: true }],
  ['/logs/a/b.log', { kind: 'logs', path: ['a', 'b.log'], folder: false }],
  ['/metrics/nothing', { kind: 'unknown' }],
  [
    '/containerLogs/ns/web/app?follow=true',
    { kind: 'containerLogs', namespace: 'ns', pod: 'web', container: 'app' },
  ],
  ['/containerLogs/ns/web', { kind: 'unknown' }],
  ['/containerLogs/ns/web/app/more', { kind: 'unknown' }],
  [
    '/exec/ns/web/app?command=sh',
    { kind: 'streaming', verb: 'exec', namespace: 'ns', pod: 'web', container: 'app' },
  ],
  [
    '/exec/ns/web/uid-1/app',
    { kind: 'streaming', verb: 'exec', namespace: 'ns', pod: 'web', uid: 'uid-1', container: 'app' },
  ],
  ['/exec/ns/web', { kind: 'unknown' }],
  [
    '/attach/ns/web/app',
    { kind: 'streaming', verb: 'attach', namespace: 'ns', pod: 'web', container: 'app' },
  ],
  [
    '/run/ns/web/app?cmd=ls',
    { kind: 'streaming', verb: 'run', namespace: 'ns', pod: 'web', container: 'app' },
  ],
  [
    '/portForward/ns/web',
    { kind: 'streaming', verb: 'portForward', namespace: 'ns', pod: 'web', uid: undefined, container: '' },
  ],
  [
    '/portForward/ns/web/uid-1',
    { kind: 'streaming', verb: 'portForward', namespace: 'ns', pod: 'web', uid: 'uid-1', container: '' },
  ],
  ['/portForward/ns/web/uid-1/x', { kind: 'unknown' }],
  ['/portforward/ns/web', { kind: 'unknown' }],
  ['/constructor/a/b/c', { kind: 'unknown' }],
  ['/', { kind: 'unknown' }],
  ['/%70ods', { kind: 'pods' }],
] as const) {
  test(`route of ${target}`, () => assert.deepEqual(route(target), wanted));
}

for (const target of [
  '',
  'pods',
  '*',
  '//pods',
  '/pods//',
  '/a/../pods',
  '/./pods',
  '/%2e%2e/pods',
  '/a%2fb',
  '/a%00',
  '/%zz',
  '/a\\b',
  'http://x/pods',
]) {
  test(`refused: ${JSON.stringify(target)}`, () =>
    assert.throws(
      () => parseTarget(target),
      (error) => isError(error, 'INVALID_ARGUMENT'),
    ));
}

const subresources: Record<string, string[]> = {
  '/pods': ['pods', 'proxy'],
  '/pods/x': ['pods', 'proxy'],
  '/podsx': ['proxy'],
  '/runningpods/': ['pods', 'proxy'],
  '/allocatedPods': ['pods', 'proxy'],
  '/healthz': ['healthz', 'proxy'],
  '/healthz/syncloop': ['healthz', 'proxy'],
  '/configz': ['configz', 'proxy'],
  '/stats/summary': ['stats'],
  '/metrics': ['metrics'],
  '/metrics/cadvisor': ['metrics'],
  '/metrics/resource': ['metrics'],
  '/logs/syslog': ['log'],
  '/checkpoint/ns/web/app': ['checkpoint'],
  '/statusz': ['statusz'],
  '/flagz': ['configz'],
  '/containerLogs/ns/web/app': ['proxy'],
  '/debug/pprof': ['proxy'],
  '/': ['proxy'],
  '/toString/x': ['proxy'],
  '/__proto__': ['proxy'],
};
const verbs = {
  GET: 'get',
  POST: 'create',
  PUT: 'update',
  PATCH: 'patch',
  DELETE: 'delete',
  HEAD: '',
  OPTIONS: '',
};
test('attributes of every path with every method', () => {
  for (const [target, wanted] of Object.entries(subresources)) {
    for (const [method, verb] of Object.entries(verbs)) {
      assert.deepEqual(
        asked(method, target),
        wanted.map((subresource) => `${verb} ${subresource}`),
        `${method} ${target}`,
      );
    }
  }
});

test('a shell is `create` whatever the method, also where the path has no route', () => {
  for (const method of Object.keys(verbs)) {
    for (const target of [
      '/exec/ns/web/app',
      '/exec/ns/web/u/app',
      '/attach/ns/web/app',
      '/run/ns/web/app',
      '/portForward/ns/web',
      '/exec',
      '/%65xec/ns/web/app',
    ]) {
      assert.deepEqual(asked(method, target), ['create proxy'], `${method} ${target}`);
    }
  }
});

test('fuzz: any target is refused or read the same by route and authorization', () => {
  const pieces = [
    '/',
    '/',
    'exec',
    'pods',
    'healthz',
    '%',
    '%65',
    '%2f',
    '..',
    '.',
    '?',
    '#',
    'ns',
    'É',
    '\0',
    ';',
    '\\',
    ' ',
  ];
  let state = 99;
  const random = (below: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return Math.floor((state / 2 ** 32) * below);
  };
  let read = 0;
  for (let round = 0; round < 50_000; round++) {
    const target = `/${Array.from({ length: random(9) }, () => pieces[random(pieces.length)]).join('')}`;
    try {
      const parsed = parseTarget(target);
      const found = routeOf(parsed);
      const wanted = attributesOf('GET', parsed);
      if (found.kind === 'streaming') assert.deepEqual(wanted, [{ verb: 'create', subresource: 'proxy' }]);
      if (found.kind === 'pods') assert.equal(wanted[0]!.subresource, 'pods');
      read++;
    } catch (error) {
      assert.ok(isError(error, 'INVALID_ARGUMENT'), `${target}: ${error}`);
    }
  }
  assert.ok(read > 1000);
});
