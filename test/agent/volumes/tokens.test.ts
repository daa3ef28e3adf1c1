import assert from 'node:assert/strict';
import { test } from 'node:test';
import { makeTokens, renewalTime, type TokenKey } from '../../../agent/volumes/tokens.ts';
import { KeelsonError } from '../../../runtime/host/errors.ts';
import { type Logger, makeLogger } from '../../../runtime/host/log.ts';
import { fakeClient, handClock, unreachable } from './cluster.ts';

const key: TokenKey = {
  namespace: 'ns',
  serviceAccount: 'sa',
  podName: 'web',
  podUid: 'uid-1',
  expirationSeconds: 3600,
};
const hour = 3_600_000;

function bench() {
  const clock = handClock();
  const client = fakeClient(clock);
  const warnings: string[] = [];
  const log: Logger = makeLogger('silent');
  log.warn = (...args: unknown[]) => void warnings.push(JSON.stringify(args));
  const tokens = makeTokens({ client, clock, log, random: () => 0 });
  return { clock, client, tokens, warnings };
}

test('renewal is at 80 % of the life or after a day, up to ten seconds earlier', () => {
  assert.equal(renewalTime(0, hour, 0), 0.8 * hour);
  assert.equal(renewalTime(0, hour, 1), 0.8 * hour - 10_000);
  assert.equal(renewalTime(0, 1000 * hour, 0), 24 * hour);
  assert.equal(renewalTime(1000, 11_000, 1), 1000 + 8000 - 1000);
});

test('a token is asked for once, kept, and renewed when due', async () => {
  const { clock, client, tokens } = bench();
  const [first, second] = await Promise.all([tokens.get(key), tokens.get(key)]);
  assert.equal(first, second);
  assert.equal(client.calls.length, 1);
  clock.advance(0.8 * hour - 1);
  assert.equal((await tokens.get(key)).text, first.text);
  clock.advance(1);
  const third = await tokens.get(key);
  assert.notEqual(third.text, first.text);
  assert.equal(client.calls.length, 2);
  assert.equal(third.renewAt, clock.now() + 0.8 * hour);
});

test('audience, lifetime and pod make tokens different', async () => {
  const { client, tokens } = bench();
  await tokens.get(key);
  await tokens.get({ ...key, audience: 'vault' });
  await tokens.get({ ...key, expirationSeconds: 600 });
  await tokens.get({ ...key, podUid: 'uid-2' });
  await tokens.get({ ...key, expirationSeconds: undefined });
  assert.equal(client.calls.length, 5);
  assert.deepEqual(client.calls[1]!.spec.audiences, ['vault']);
  assert.equal(client.calls[4]!.spec.expirationSeconds, 3600);
});

test('the life that the apiserver grants counts', async () => {
  const { clock, client, tokens } = bench();
  client.granted = 600;
  assert.equal((await tokens.get(key)).renewAt, clock.now() + 480_000);
});

test('when renewal fails the old token is kept, even past its end, and its text is in no log', async () => {
  const { clock, client, tokens, warnings } = bench();
  const { text } = await tokens.get(key);
  client.failure = unreachable;
  clock.advance(0.9 * hour);
  const kept = await tokens.get(key);
  assert.equal(kept.text, text);
  assert.equal(kept.renewAt, clock.now() + 30_000);
  await tokens.get(key);
  assert.equal(client.calls.length, 2, 'not asked for again at once');
  clock.advance(10 * hour);
  assert.equal((await tokens.get(key)).text, text);
  assert.match(warnings.at(-1)!, /which has expired; the old one is kept/);
  assert.ok(warnings.every((line) => !line.includes(text)));
  client.failure = undefined;
  clock.advance(hour);
  assert.notEqual((await tokens.get(key)).text, text);
});

test('without any token the failure is the failure, and the next call asks again', async () => {
  const { client, tokens } = bench();
  client.failure = unreachable;
  await assert.rejects(tokens.get(key), (error) => error === unreachable);
  client.failure = undefined;
  assert.ok((await tokens.get(key)).text);
});

test('answers that are not tokens are refused', async () => {
  for (const answer of [{}, { status: {} }, { status: { token: '' } }, { status: { token: 7 } }]) {
    const { client, tokens } = bench();
    client.answer = answer;
    await assert.rejects(
      tokens.get(key),
      (error) => error instanceof KeelsonError && error.code === 'API_GARBAGE',
    );
  }
});

test('without an apiserver there are no tokens', async () => {
  const tokens = makeTokens({ client: undefined, clock: handClock(), log: makeLogger('silent') });
  await assert.rejects(tokens.get(key), /needs an apiserver/);
});

test('what is forgotten is asked for again', async () => {
  const { client, tokens } = bench();
  await tokens.get(key);
  await tokens.get({ ...key, podUid: 'uid-2' });
  tokens.forget('uid-1');
  await tokens.get({ ...key, podUid: 'uid-2' });
  assert.equal(client.calls.length, 2);
  await tokens.get(key);
  assert.equal(client.calls.length, 3);
});

test('a token of an earlier process is taken over only where it fits', async () => {
  const { clock, client, tokens } = bench();
  const iat = clock.now() / 1000;
  const jwt = (claims: unknown) => `e30.${Buffer.from(JSON.stringify(claims)).toString('base64url')}.s`;
  const bound = (uid: string, more: object = {}) => ({ pod: { name: 'web', uid }, ...more });
  for (const text of [
    '',
    'garbage',
    'a.b.c',
    jwt(null),
    jwt('x'),
    jwt({ iat, exp: iat + 3600 }),
    jwt({ iat, exp: iat + 3600, 'kubernetes.io': bound('other') }),
    jwt({ iat: iat - 7200, exp: iat - 1, 'kubernetes.io': bound('uid-1') }),
    jwt({ iat: 'x', exp: iat + 3600, 'kubernetes.io': bound('uid-1') }),
  ]) {
    tokens.adopt(key, text);
  }
  await tokens.get(key);
  assert.equal(client.calls.length, 1, 'none of them was taken');

  const next = bench();
  const year = jwt({
    iat,
    exp: iat + 31_536_000,
    'kubernetes.io': bound('uid-1', { warnafter: iat + 3607 }),
  });
  next.tokens.adopt(key, year);
  const adopted = await next.tokens.get(key);
  assert.equal(adopted.text, year);
  assert.equal(adopted.renewAt, clock.now() + 0.8 * 3_607_000);
  assert.equal(next.client.calls.length, 0);
});
