/** What cannot be run: the error says why, nothing is left, the name is free again, and other pods do not notice. */
import assert from 'node:assert/strict';
import { closeSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import type { PodSandboxConfig } from '../../runtime/api.ts';
import { systemClock } from '../../runtime/host/clock.ts';
import { openDatabase } from '../../runtime/host/database.ts';
import { describe, type ErrorCode, isError, KeelsonError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { mount, umountFlags, unmountAside } from '../../runtime/host/syscalls.ts';
import { allProcesses, argumentsOf } from '../../runtime/processes.ts';
import { makeRuntime } from '../../runtime/runtime.ts';
import { type ContainerChanges, cannotRun, fakeImages, makeMachine } from './machine.ts';

const skip = cannotRun;

/** The programs that run on folders of the machine: conmon, runc and the like. */
function programsOn(root: string): string[][] {
  return allProcesses()
    .map(argumentsOf)
    .filter((args) => args.some((arg) => arg.includes(root)));
}

test('containers that cannot be created', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const other = await machine.startContainer(sandbox, ['sleep', '1000'], {
    metadata: { name: 'other', attempt: 0 },
  });
  const mount = (hostPath: string, containerPath = '/m') => [
    { containerPath, hostPath, readonly: false, propagation: 'private' as const },
  ];
  // Of these CreateContainer knows nothing: as in containerd, it is the start that fails.
  const start = 'CONTAINER_START_FAILED';
  const cases: [string, readonly string[], ContainerChanges, ErrorCode, RegExp][] = [
    ['no command', ['nosuch'], {}, start, /executable file not found in \$PATH/],
    ['no file', ['/no/such'], {}, start, /no such file or directory/],
    ['not executable', ['/bin/not-executable'], {}, start, /permission denied/],
    ['no image', ['true'], { image: { image: 'nosuch' } }, 'IMAGE_NOT_PRESENT', /nosuch/],
    [
      'source',
      ['true'],
      { mounts: mount('/etc/passwd/x') },
      'CONTAINER_CREATE_FAILED',
      /\/etc\/passwd\/x.*ENOTDIR/,
    ],
    ['place', ['true'], { mounts: mount('/tmp', 'relative') }, 'CONTAINER_CONFIG_INVALID', /absolute/],
    ['file over folder', ['true'], { mounts: mount('/etc/passwd', '/tmp') }, start, /mount/],
    ['no such folder to work in', ['true'], { workingDir: '/etc/passwd' }, start, /etc\/passwd/],
    [
      'user',
      ['true'],
      { linux: { security: { runAsUsername: 'nobody-here' } } },
      'CONTAINER_CONFIG_INVALID',
      /nobody-here/,
    ],
    [
      'capability',
      ['true'],
      { linux: { security: { capabilities: { add: ['FLY'], drop: [] } } } },
      'CONTAINER_CONFIG_INVALID',
      /FLY/,
    ],
    [
      'seccomp',
      ['true'],
      { linux: { security: { seccomp: { type: 'Localhost', localhostRef: '/x' } } } },
      'CONTAINER_CONFIG_INVALID',
      /seccomp/,
    ],
    ['log', ['true'], { logPath: '../../../etc/x.log' }, 'CONTAINER_CONFIG_INVALID', /logPath/],
    ['colon', ['true'], { logPath: 'a:b/0.log' }, 'CONTAINER_CONFIG_INVALID', /logPath/],
    [
      'device',
      ['true'],
      { devices: [{ containerPath: '/dev/x', hostPath: '/dev/nosuch', permissions: 'rw' }] },
      'CONTAINER_CONFIG_INVALID',
      /\/dev\/nosuch/,
    ],
    ['memory', ['true'], { linux: { resources: { memoryLimitBytes: 4096 } } }, start, /./],
  ];
  for (const [name, command, changes, code, words] of cases) {
    const config = machine.containerConfig(command, {
      metadata: { name: 'failing', attempt: 0 },
      ...changes,
    });
    const fails = (call: Promise<unknown>) =>
      assert.rejects(call, (error) => {
        assert.ok(isError(error), name);
        assert.equal(error.code, code, `${name}: ${describe(error)}`);
        assert.match(describe(error), words, name);
        return true;
      });
    const creating = machine.runtime.createContainer(sandbox, config);
    if (code === start) {
      const id = await creating;
      assert.equal((await machine.runtime.containerStatus(id)).state, 'created', name);
      await fails(machine.runtime.startContainer(id));
      const { state, exitCode, reason, message, startedAt, finishedAt } =
        await machine.runtime.containerStatus(id);
      assert.deepEqual([state, exitCode, reason, startedAt], ['exited', 128, 'StartError', 0], name);
      assert.match(message, words, name);
      assert.ok(finishedAt > 0, name);
      assert.equal(await machine.logOf(id), '', name);
      await assert.rejects(machine.runtime.startContainer(id), (error) =>
        isError(error, 'FAILED_PRECONDITION'),
      );
      await machine.runtime.removeContainer(id);
    } else await fails(creating);
    assert.deepEqual(
      (await machine.runtime.listContainers()).map(({ id }) => id),
      [other],
      name,
    );
  }
  assert.deepEqual(await readdir(join(machine.runDir, 'containers')), [other]);
  assert.deepEqual(await readdir(join(machine.stateDir, 'containers')), [other]);
  // The name was released each time.
  await machine.startContainer(sandbox, ['true'], { metadata: { name: 'failing', attempt: 0 } });
  assert.equal((await machine.runtime.containerStatus(other)).state, 'running');
  await machine.runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

const skipFuse = skip || (!existsSync('/dev/fuse') && 'the kernel has no file systems of programs (FUSE)');

test('a file system that never answers holds up its own containers only', { skip: skipFuse }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const [alive, dead] = ['alive', 'dead'].map((name) => join(machine.root, name));
  mkdirSync(alive!);
  mkdirSync(dead!);
  const mountsOf = (...paths: (string | undefined)[]) =>
    paths.map((hostPath, index) => ({
      ...{ containerPath: `/m${index}`, hostPath: hostPath!, readonly: false },
      propagation: 'private' as const,
    }));
  // Whoever asks the file system waits for this descriptor's holder, who reads nothing.
  const fuse = openSync('/dev/fuse', 'r+');
  try {
    mount('dead', dead!, 'fuse', 0, `fd=${fuse},rootmode=40000,user_id=0,group_id=0`);
    // More than there are threads that wait for files.
    for (let attempt = 0; attempt < 8; attempt++) {
      const config = machine.containerConfig(['true'], {
        metadata: { name: 'stuck', attempt },
        mounts: mountsOf(alive, dead),
      });
      await assert.rejects(runtime.createContainer(sandbox, config), (error) => {
        assert.match(describe(error), /the file system of .*dead does not answer/);
        return true;
      });
    }
    const id = await machine.startContainer(sandbox, ['true'], {
      metadata: { name: 'well', attempt: 0 },
      mounts: mountsOf(alive),
    });
    assert.equal((await machine.exited(id)).exitCode, 0);
    await runtime.removePodSandbox(sandbox);
  } finally {
    closeSync(fuse);
    await unmountAside(dead!, umountFlags.NOFOLLOW | umountFlags.DETACH);
  }
  assert.deepEqual(await machine.leftovers(), []);
});

test('calls in the wrong order and for what is not there', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const code = (wanted: ErrorCode) => (error: unknown) => isError(error, wanted);
  await assert.rejects(
    runtime.createContainer('nosuch', machine.containerConfig(['true'])),
    code('NOT_FOUND'),
  );
  await assert.rejects(runtime.startContainer('nosuch'), code('NOT_FOUND'));
  await assert.rejects(runtime.podSandboxStatus('nosuch'), code('NOT_FOUND'));
  await runtime.stopPodSandbox('nosuch');
  await runtime.removePodSandbox('nosuch');
  await runtime.removeContainer('nosuch');
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  await assert.rejects(runtime.startContainer(id), code('FAILED_PRECONDITION'));
  await assert.rejects(
    runtime.createContainer(sandbox, machine.containerConfig(['true'])),
    code('ALREADY_EXISTS'),
  );
  const twice = await runtime.createContainer(
    sandbox,
    machine.containerConfig(['true'], { metadata: { name: 'twice', attempt: 0 } }),
  );
  const starts = await Promise.allSettled([runtime.startContainer(twice), runtime.startContainer(twice)]);
  assert.deepEqual(starts.map(({ status }) => status).sort(), ['fulfilled', 'rejected']);
  await runtime.stopPodSandbox(sandbox);
  await runtime.stopPodSandbox(sandbox);
  await assert.rejects(
    runtime.createContainer(
      sandbox,
      machine.containerConfig(['true'], { metadata: { name: 'late', attempt: 0 } }),
    ),
    code('FAILED_PRECONDITION'),
  );
});

test('the same call again gives the same sandbox and container', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const config = machine.sandboxConfig({
    linux: { security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } },
  });
  const [one, two] = await Promise.all([
    runtime.runPodSandbox(config, ''),
    runtime.runPodSandbox(config, ''),
  ]);
  assert.equal(one, two);
  assert.equal(await runtime.runPodSandbox(config, ''), one);
  const container = machine.containerConfig(['sleep', '1000']);
  const ids = await Promise.all([
    runtime.createContainer(one, container),
    runtime.createContainer(one, container),
  ]);
  assert.equal(ids[0], ids[1]);
  assert.equal(await runtime.createContainer(one, container), ids[0]);
  const reopened = await machine.restart();
  assert.equal(await reopened.runPodSandbox(config, ''), one);
  assert.equal(await reopened.createContainer(one, container), ids[0]);
  await reopened.stopPodSandbox(one);
  await assert.rejects(reopened.runPodSandbox(config, ''), (error) => isError(error, 'ALREADY_EXISTS'));
  const next: PodSandboxConfig = { ...config, metadata: { ...config.metadata, attempt: 1 } };
  assert.notEqual(await reopened.runPodSandbox(next, ''), one);
});

test('sandboxes that cannot be made leave nothing', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const pod = { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } as const;
  const failing: [PodSandboxConfig, string, ErrorCode, RegExp][] = [
    [machine.sandboxConfig(), 'kata', 'INVALID_ARGUMENT', /kata/],
    [
      machine.sandboxConfig({ linux: { sysctls: { 'net.core.somaxconn': '5' } } }),
      '',
      'SANDBOX_CREATE_FAILED',
      /network/,
    ],
    [
      machine.sandboxConfig({ linux: { security: pod, sysctls: { 'net.no.such': '5' } } }),
      '',
      'SANDBOX_CREATE_FAILED',
      /net\/no\/such/,
    ],
    [
      machine.sandboxConfig({ linux: { sysctls: { 'kernel.panic': '1' } } }),
      '',
      'SANDBOX_CREATE_FAILED',
      /kernel.panic/,
    ],
    [machine.sandboxConfig({ linux: { cgroupParent: '/../x' } }), '', 'INVALID_ARGUMENT', /cgroup/],
    [machine.sandboxConfig({ hostname: 'a b' }), '', 'INVALID_ARGUMENT', /host name/],
    [machine.sandboxConfig({ logDirectory: '/a/../../etc' }), '', 'INVALID_ARGUMENT', /logDirectory/],
    [machine.sandboxConfig({ logDirectory: '/a:b' }), '', 'INVALID_ARGUMENT', /logDirectory/],
    [
      machine.sandboxConfig({ dns: { servers: ['1.1.1.1\nnameserver 2.2.2.2'], searches: [], options: [] } }),
      '',
      'INVALID_ARGUMENT',
      /dns/,
    ],
  ];
  for (const [config, handler, code, words] of failing) {
    await assert.rejects(runtime.runPodSandbox(config, handler), (error) => {
      assert.ok(isError(error, code), describe(error));
      assert.match(describe(error), words);
      return true;
    });
  }
  // A plugin that is not there: the namespace that was pinned must go again.
  const conf = join(machine.cniConf, '10-test.conflist');
  const before = readFileSync(conf, 'utf8');
  writeFileSync(conf, before.replace('"bridge"', '"nosuch"'));
  const config = machine.sandboxConfig({ linux: { security: pod } });
  const again = async () => {
    for (;;) {
      const error = await runtime.runPodSandbox(config, '').then(
        () => undefined,
        (reason: unknown) => reason,
      );
      if (isError(error, 'CNI_PLUGIN_MISSING')) return;
      // The change of the file is noticed a moment later.
      assert.equal(error, undefined);
      for (const { id } of await runtime.listPodSandbox()) await runtime.removePodSandbox(id);
    }
  };
  await again();
  assert.deepEqual(await runtime.listPodSandbox(), []);
  assert.deepEqual(await machine.leftovers(), []);
});

test('aborted while creating', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  const security = { namespaces: { network: 'pod', pid: 'pod', ipc: 'pod' } } as const;
  const code = (error: unknown) => isError(error, 'ABORTED');
  for (const ms of [0, 1, 3, 8, 15]) {
    const signal = AbortSignal.timeout(ms);
    await runtime.runPodSandbox(machine.sandboxConfig({ linux: { security } }), '', signal).then(
      (id) => runtime.removePodSandbox(id),
      (error) => assert.ok(isError(error, 'ABORTED', 'DEADLINE_EXCEEDED'), describe(error)),
    );
    assert.deepEqual(await machine.leftovers(), [], `${ms} ms`);
  }
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  for (const ms of [0, 1, 2, 4, 5, 6, 7, 8, 12, 16, 20]) {
    const abort = new AbortController();
    const creating = runtime.createContainer(sandbox, machine.containerConfig(['true']), abort.signal);
    setTimeout(() => abort.abort(), ms);
    // A quick machine may be done before.
    await creating.then(
      (id) => runtime.removeContainer(id),
      (error) => assert.ok(code(error), `${ms} ms: ${describe(error)}`),
    );
    assert.deepEqual(await readdir(join(machine.runDir, 'containers')), []);
    assert.deepEqual(await runtime.listContainers(), []);
    assert.deepEqual(programsOn(machine.root), []);
  }
  // Stopping the sandbox breaks off what is being created in it.
  const creating = runtime.createContainer(sandbox, machine.containerConfig(['true']));
  const stopped = runtime.stopPodSandbox(sandbox);
  await assert.rejects(creating, (error) => isError(error, 'ABORTED', 'FAILED_PRECONDITION'));
  await stopped;
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('ids that are paths lead nowhere', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const { runtime } = machine;
  for (const id of ['', '.', '..', '../..', '/', '/etc', 'a/../../b', '\0', '-f', 'x'.repeat(5000)]) {
    await runtime.removeContainer(id);
    await runtime.stopContainer(id, 0);
    await runtime.removePodSandbox(id);
    await runtime.stopPodSandbox(id);
    await assert.rejects(runtime.containerStatus(id), (error) => isError(error, 'NOT_FOUND'));
    await assert.rejects(runtime.execSync(id, ['true'], 0), (error) => isError(error, 'NOT_FOUND'));
    await assert.rejects(runtime.reopenContainerLog(id), (error) => isError(error, 'NOT_FOUND'));
  }
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  for (const name of ['../../x', '/etc/passwd', 'a b', '-n', 'ü', '"', '$(id)', 'x'.repeat(300)]) {
    const id = await runtime.createContainer(
      sandbox,
      machine.containerConfig(['true'], { metadata: { name, attempt: 0 }, logPath: 'x.log' }),
    );
    assert.match(id, /^[0-9a-f]{64}$/);
  }
  await runtime.removePodSandbox(sandbox);
  assert.deepEqual(await machine.leftovers(), []);
});

test('a sandbox that could not be undone is undone later, also when nobody asks for it any more', {
  skip,
}, async (t) => {
  const machine = await makeMachine(t);
  const db = openDatabase(join(machine.root, 'other', 'state.db'));
  t.after(() => db.close());
  const asked: string[] = [];
  let broken = true;
  let tick = () => {};
  const plugin = async (verb: string) => {
    asked.push(verb);
    if (broken) throw new KeelsonError('CNI_PLUGIN_FAILED', `${verb} failed`);
    return { ips: [] };
  };
  const runtime = await makeRuntime({
    db,
    stateDir: join(machine.root, 'other'),
    runDir: join(machine.root, 'other-run'),
    images: fakeImages(machine.layer, new Map()),
    cni: {
      add: () => plugin('ADD'),
      del: async () => void (await plugin('DEL')),
      check: async () => {},
      status: async () => ({ ready: true, reason: '', message: '' }),
      gc: async () => {},
      close: () => {},
    },
    log: makeLogger('silent'),
    clock: {
      ...systemClock,
      after(_, callback) {
        tick = callback;
        return () => {};
      },
    },
    version: '1',
  });
  t.after(() => runtime.close());
  const security = { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } as const;
  const config = machine.sandboxConfig({ linux: { security } });
  await assert.rejects(runtime.runPodSandbox(config, ''), /ADD failed/);
  await assert.rejects(runtime.runPodSandbox(config, ''), /DEL failed/);
  broken = false;
  const rows = () => db.statement('SELECT count(*) AS n FROM sandboxes').get()?.['n'];
  assert.equal(rows(), 1);
  tick();
  while (rows() !== 0) await new Promise((resolve) => setTimeout(resolve, 1));
  assert.deepEqual(asked, ['ADD', 'DEL', 'DEL', 'DEL']);
  assert.deepEqual(await readdir(join(machine.root, 'other-run', 'sandboxes')), []);
});

test('missing programs are named with their package', { skip }, async (t) => {
  const machine = await makeMachine(t);
  const db = openDatabase(join(machine.root, 'other', 'state.db'));
  const notReady = { ready: false, reason: 'NetworkPluginNotReady', message: 'no network' };
  const runtime = await makeRuntime({
    db,
    stateDir: join(machine.root, 'other'),
    runDir: join(machine.root, 'other-run'),
    images: fakeImages(machine.layer, new Map()),
    cni: {
      add: () => Promise.reject(new Error('unused')),
      del: async () => {},
      check: async () => {},
      status: async () => notReady,
      gc: async () => {},
      close: () => {},
    },
    log: makeLogger('silent'),
    clock: systemClock,
    handlers: { runc: { path: '/no/such/runc' } },
    conmon: '/no/such/conmon',
    version: '1',
  });
  const conditions = await runtime.status();
  const ready = conditions.find(({ type }) => type === 'RuntimeReady');
  assert.equal(ready?.status, false);
  assert.match(ready?.message ?? '', /package runc.*package conmon/);
  assert.equal(conditions.find(({ type }) => type === 'NetworkReady')?.message, 'no network');
  await assert.rejects(runtime.runPodSandbox(machine.sandboxConfig(), ''), (error) =>
    isError(error, 'DEPENDENCY_MISSING'),
  );
  assert.equal((await machine.runtime.status()).find(({ type }) => type === 'RuntimeReady')?.status, true);
  await runtime.close();
  db.close();
});
