/** node:test's spec reporter; where something failed, the counts come again after the failures, as the last lines. */
import { spec, type TestEvent } from 'node:test/reporters';

const counted = ['tests', 'suites', 'pass', 'fail', 'cancelled', 'skipped', 'todo'];

export default async function* reporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const inner = new spec();
  const counts = new Map<string, string>();
  const feeding = (async () => {
    for await (const event of source) {
      const [name, count] = event.type === 'test:diagnostic' ? event.data.message.split(' ') : [];
      if (counted.includes(name ?? '') && count !== undefined) counts.set(name!, count);
      inner.write(event);
    }
    inner.end();
  })();
  inner.setEncoding('utf8');
  yield* inner as AsyncIterable<string>;
  await feeding;
  if (counts.get('fail') === '0' && counts.get('cancelled') === '0') return;
  yield `\n${[...counts].map(([name, count]) => `ℹ ${name} ${count}`).join('\n')}\n`;
}
