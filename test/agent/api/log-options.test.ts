import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseLogOptions } from '../../../agent/api/log-options.ts';
import { isError } from '../../../runtime/host/errors.ts';

const now = Date.parse('2026-11-23T12:00:00Z');
const parse = (query: string) => parseLogOptions(new URLSearchParams(query), now);
const plain = {
  follow: false,
  previous: false,
  timestamps: false,
  tailLines: undefined,
  since: undefined,
  limitBytes: undefined,
  stream: 'all',
};

for (const [query, wanted] of [
  ['', {}],
  ['container=app&pretty=true&insecureSkipTLSVerifyBackend=true', {}],
  ['follow=true&previous=1&timestamps=', { follow: true, previous: true, timestamps: true }],
  ['follow=false&previous=0&timestamps=FALSE', {}],
  ['tailLines=0', { tailLines: 0 }],
  ['tailLines=%2B5', { tailLines: 5 }],
  ['tail=7', { tailLines: 7 }],
  ['tail=all&tailLines=3', {}],
  ['tail=&tailLines=3', { tailLines: 3 }],
  ['sinceSeconds=60', { since: now - 60_000 }],
  ['sinceTime=2026-11-23T13:00:00%2B02:00', { since: now - 3_600_000 }],
  ['sinceTime=2026-11-23T11:59:59.5Z', { since: now - 500 }],
  ['sinceTime=null', {}],
  ['limitBytes=1', { limitBytes: 1 }],
  ['stream=All', {}],
  ['stream=Stderr', { stream: 'stderr' }],
  ['stream=Stdout', { stream: 'stdout' }],
] as const) {
  test(`read: ${query || '(nothing)'}`, () => assert.deepEqual(parse(query), { ...plain, ...wanted }));
}

for (const [query, status] of [
  ['tailLines=x', 400],
  ['tailLines=1.5', 400],
  ['tailLines=', 400],
  ['limitBytes=99999999999999999999', 400],
  ['sinceTime=yesterday', 400],
  ['sinceTime=2026-13-45T99:00:00Z', 400],
  ['tailLines=-1', 422],
  ['limitBytes=0', 422],
  ['sinceSeconds=0', 422],
  ['sinceSeconds=1&sinceTime=2026-11-23T11:00:00Z', 422],
  ['stream=stdout', 422],
  ['stream=toString', 422],
  ['stream=Stdout&tailLines=1', 422],
] as const) {
  test(`refused with ${status}: ${query}`, () =>
    assert.throws(
      () => parse(query),
      (error) => isError(error, 'INVALID_ARGUMENT') && error.details['status'] === status,
    ));
}
