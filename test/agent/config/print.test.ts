import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadConfig } from '../../../agent/config/load.ts';
import { printConfig } from '../../../agent/config/print.ts';

test('the configuration is printed as a KubeletConfiguration that reads the same', async () => {
  const config = await loadConfig(undefined, { streamingConnectionIdleTimeout: '90s', maxPods: 7 });
  const printed = printConfig(config);
  assert.equal(printed['apiVersion'], 'kubelet.config.k8s.io/v1beta1');
  assert.equal(printed['streamingConnectionIdleTimeout'], '1m30s');
  assert.equal(printed['maxPods'], 7);
  assert.equal(printed['keelson'], undefined);
  const authentication = printed['authentication'] as { webhook: { cacheTTL: string } };
  assert.equal(authentication.webhook.cacheTTL, '2m0s');
  const { kind: _k, apiVersion: _a, ...fields } = printed;
  const again = await loadConfig(undefined, fields as Parameters<typeof loadConfig>[1]);
  assert.deepEqual({ ...again, warnings: [] }, { ...config, warnings: [] });
});
