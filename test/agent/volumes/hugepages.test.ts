import assert from 'node:assert/strict';
import { test } from 'node:test';
import { hugePageSize } from '../../../agent/volumes/emptydir.ts';
import { isError } from '../../../runtime/host/errors.ts';

const asks = (...sizes: string[]) => ({
  name: 'c',
  resources: { requests: Object.fromEntries(sizes.map((size) => [`hugepages-${size}`, '4Mi'])) },
});

test('the pages of a volume are of a size that the pod asks for', () => {
  const mebibyte = 2 ** 20;
  const size = (medium: string, containers: object[], spec: object = {}) =>
    hugePageSize(medium, { spec: { containers: containers as never, ...spec } });
  assert.equal(size('HugePages', [asks('2Mi')]), 2 * mebibyte);
  assert.equal(
    size('HugePages', [asks('2Mi'), asks('2048Ki')]),
    2 * mebibyte,
    'the size counts, not the word',
  );
  assert.equal(size('HugePages', [asks()], { initContainers: [asks('1Gi')] }), 1024 * mebibyte);
  assert.equal(
    size('HugePages', [asks()], { resources: { requests: { 'hugepages-2Mi': '2Mi' } } }),
    2 * mebibyte,
  );
  assert.equal(size('HugePages-1Gi', [asks('2Mi', '1Gi')]), 1024 * mebibyte);
  const refused = (message: RegExp) => (error: unknown) =>
    isError(error, 'VOLUME_FAILED') && message.test(error.message);
  const none = /: hugePages storage requested, but there is no resource request for huge pages$/;
  assert.throws(() => size('HugePages', [asks()]), refused(none));
  assert.throws(() => size('HugePages-1Gi', [asks('2Mi')]), refused(none));
  assert.throws(
    () => size('HugePages', [asks('2Mi', '1Gi')]),
    refused(/^medium: HugePages can't be used if container requests multiple huge page sizes$/),
  );
  assert.throws(() => size('HugePages-big', [asks('2Mi')]), refused(/names no size of huge pages$/));
});
