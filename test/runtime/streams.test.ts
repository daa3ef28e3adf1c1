/** exec, attach and port-forward of real containers, by client-go over SPDY and WebSocket. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { PassThrough, Writable } from 'node:stream';
import { type TestContext, test } from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { systemClock } from '../../runtime/host/clock.ts';
import { isError } from '../../runtime/host/errors.ts';
import { makeLogger } from '../../runtime/host/log.ts';
import { attachToMonitor } from '../../runtime/io/attach.ts';
import { tellMonitor } from '../../runtime/io/monitor_control.ts';
import { makeStreaming } from '../../runtime/streaming/server.ts';
import type { AttachRequest, StreamingServer } from '../../runtime/streaming/types.ts';
import { startClient, streamingClient } from '../peers/streaming-client.ts';
import { cannotRun, type Machine, makeMachine } from './machine.ts';

const client = cannotRun === false ? await streamingClient() : { missing: '' };
const program = typeof client === 'string' ? client : '';
const skip = cannotRun || (typeof client === 'string' ? false : client.missing);
const transports = ['spdy', 'websocket'] as const;

interface Stage {
  readonly machine: Machine;
  readonly streaming: StreamingServer;
}

async function setStage(t: TestContext): Promise<Stage> {
  const machine = await makeMachine(t);
  const streaming = makeStreaming({
    runtime: machine.runtime,
    clock: systemClock,
    log: makeLogger('silent'),
  });
  t.after(() => streaming.close());
  return { machine, streaming };
}

type Wanted = Partial<Omit<AttachRequest, 'containerId'>>;

const request = (containerId: string, wanted: Wanted): AttachRequest => ({
  containerId,
  stdin: false,
  stdout: true,
  stderr: !wanted.tty,
  tty: false,
  ...wanted,
});
const flags = (wanted: AttachRequest) =>
  (['stdin', 'stdout', 'stderr', 'tty'] as const).filter((name) => wanted[name]).map((name) => `-${name}`);

async function startExec(
  { streaming }: Stage,
  transport: string,
  id: string,
  command: readonly string[],
  wanted: Wanted = {},
  more: readonly string[] = [],
) {
  const asked = request(id, wanted);
  const url = await streaming.exec({ ...asked, command });
  return startClient(program, ['exec', '-url', url, '-transport', transport, ...flags(asked), ...more]);
}

async function startAttach(
  { streaming }: Stage,
  transport: string,
  id: string,
  wanted: Wanted = {},
  more: readonly string[] = [],
) {
  const asked = request(id, wanted);
  const url = await streaming.attach(asked);
  return startClient(program, ['exec', '-url', url, '-transport', transport, ...flags(asked), ...more]);
}

const openDescriptors = () => readdirSync('/proc/self/fd').length;

/** Looks again until `holds`; what ends elsewhere in the machine has no event here. */
async function eventually(holds: () => boolean | Promise<boolean>, what: () => string): Promise<void> {
  for (const deadline = performance.now() + 20_000; !(await holds()); ) {
    assert.ok(performance.now() < deadline, what());
    await delay(20);
  }
}

test('exec: streams, exit codes, input that ends, terminals with their size', { skip }, async (t) => {
  const stage = await setStage(t);
  const { machine } = stage;
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  for (const transport of transports) {
    await t.test(transport, async () => {
      const split = await startExec(stage, transport, id, ['sh', '-c', 'echo out; echo err >&2; exit 7']);
      const done = await split.result;
      assert.deepEqual([done.code, done.stdout.toString(), done.stderr], [7, 'out\n', 'err\n']);

      const copy = await startExec(stage, transport, id, ['cat'], { stdin: true });
      copy.stdin.end('some input');
      const copied = await copy.result;
      assert.deepEqual([copied.code, copied.stdout.toString()], [0, 'some input']);

      const deaf = await startExec(stage, transport, id, ['true'], { stdin: true });
      deaf.stdin.end(Buffer.alloc(4 << 20));
      assert.equal((await deaf.result).code, 0);

      const missing = await startExec(stage, transport, id, ['no-such-program']);
      const failed = await missing.result;
      assert.equal(failed.code, 125);
      assert.match(failed.stderr, /error executing command in container: .*no-such-program.*not found/);

      const shell = await startExec(stage, transport, id, ['sh'], { tty: true, stdin: true }, [
        ...['-sizes', '81x25,132x43'],
      ]);
      shell.stdin.write('tty; stty size; echo done\n');
      await shell.said(/\/dev\/pts\/\d+\r\n25 81\r\n/);
      shell.stdin.write('resize\n');
      shell.stdin.write('while [ "$(stty size)" != "43 132" ]; do :; done; echo $TERM; exit 9\n');
      await shell.said(/\nxterm\r\n$/);
      assert.equal((await shell.result).code, 9);
    });
  }
  await assert.rejects(
    stage.streaming.exec({ ...request(id, {}), containerId: 'nobody', command: ['true'] }),
    (error) => isError(error, 'NOT_FOUND'),
  );
  await machine.runtime.stopContainer(id, 0);
  await assert.rejects(stage.streaming.exec({ ...request(id, {}), command: ['true'] }), (error) =>
    isError(error, 'FAILED_PRECONDITION'),
  );
});

test('exec: older protocols over SPDY and WebSocket', { skip }, async (t) => {
  const stage = await setStage(t);
  const { machine } = stage;
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const versions = ['v4.channel.k8s.io', 'v3.channel.k8s.io', 'v2.channel.k8s.io', 'channel.k8s.io'];
  for (const transport of transports) {
    for (const version of versions) {
      const run = (command: string, wanted: Wanted = {}, more: readonly string[] = []) =>
        startExec(stage, transport, id, ['sh', '-c', command], wanted, ['-protocols', version, ...more]);
      const good = await (await run('seq 1 100000')).result;
      assert.deepEqual([good.code, good.stdout.length], [0, 588_895], `${transport} ${version}`);
      const bad = await (await run('echo out; exit 7')).result;
      // Before v4 there are words instead of a code; with v1 the client may not wait for them.
      if (version.startsWith('v4')) assert.equal(bad.code, 7);
      else if (version !== 'channel.k8s.io') {
        assert.equal(bad.code, 125);
        assert.match(bad.stderr, /exit status 7/);
      }
      assert.equal(bad.stdout.toString(), 'out\n');
      const terminal = await run('tty', { tty: true }, ['-sizes', '90x20']);
      assert.match((await terminal.result).stdout.toString(), /^\/dev\/pts\/\d+\r\n$/);
    }
  }
});

test('exec -i cat carries much and keeps little', { skip }, async (t) => {
  const stage = await setStage(t);
  const { machine } = stage;
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const block = Buffer.alloc(1 << 20, 'keelson ');
  const blocks = 300;
  for (const transport of transports) {
    await t.test(transport, async () => {
      const asked = request(id, { stdin: true, stderr: false });
      const url = await stage.streaming.exec({ ...asked, command: ['cat'] });
      const args = ['exec', '-url', url, '-transport', transport, ...flags(asked)];
      const cat = startClient(program, args, false);
      const sent = createHash('sha256');
      const got = createHash('sha256');
      let size = 0;
      let most = 0;
      global.gc?.();
      const before = process.memoryUsage.rss();
      cat.stdout.on('data', (chunk: Buffer) => {
        size += chunk.length;
        got.update(chunk);
        most = Math.max(most, process.memoryUsage.rss());
      });
      for (let index = 0; index < blocks; index++) {
        sent.update(block);
        if (!cat.stdin.write(block)) await new Promise((resolve) => cat.stdin.once('drain', resolve));
      }
      cat.stdin.end();
      assert.equal((await cat.result).code, 0);
      assert.equal(size, blocks * block.length);
      assert.equal(got.digest('hex'), sent.digest('hex'));
      assert.ok(most - before < 100 << 20, `grew by ${(most - before) >> 20} MiB`);
    });
  }
});

test('exec: a client that does not read holds the command up, one that leaves ends it', {
  skip,
}, async (t) => {
  const stage = await setStage(t);
  const { machine } = stage;
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const alive = async (name: string) => {
    const { stdout } = await machine.runtime.execSync(id, ['ps', '-o', 'args'], 10_000);
    return stdout.toString().split('\n').includes(name);
  };
  for (const transport of transports) {
    await t.test(transport, async () => {
      const asked = request(id, { stderr: false });
      const url = await stage.streaming.exec({ ...asked, command: ['yes', transport] });
      const before = openDescriptors();
      const flood = startClient(program, ['exec', '-url', url, '-transport', transport, '-stdout'], false);
      await new Promise((resolve) => flood.stdout.once('readable', resolve));
      // Nobody reads on: the pipes and sockets between fill up.
      assert.ok(await alive(`yes ${transport}`));
      flood.kill('SIGKILL');
      flood.stdout.destroy();
      await flood.result;
      const shell = await startExec(stage, transport, id, ['sh'], { tty: true, stdin: true });
      shell.stdin.write('echo ready\n');
      await shell.said(/\r\nready\r\n/);
      shell.kill('SIGKILL');
      await shell.result;
      const input = await startExec(stage, transport, id, ['cat'], { stdin: true });
      input.stdin.write('x');
      await input.said(/x/);
      input.kill('SIGKILL');
      await input.result;
      let left: boolean[] = [];
      await eventually(
        async () => {
          left = await Promise.all([alive(`yes ${transport}`), alive('sh'), alive('cat')]);
          return !left.includes(true) && openDescriptors() <= before;
        },
        () => `still there: ${left}, ${openDescriptors() - before} descriptors`,
      );
    });
  }
});

test('attach: output from now on, input, terminals, and the end of the container', { skip }, async (t) => {
  const stage = await setStage(t);
  const { machine } = stage;
  const { runtime } = machine;
  const sandbox = await runtime.runPodSandbox(machine.sandboxConfig(), '');
  for (const [index, transport] of transports.entries()) {
    await t.test(transport, async () => {
      const named = (name: string) => ({ metadata: { name, attempt: index } });
      const plain = await machine.startContainer(sandbox, ['sh'], {
        ...named('plain'),
        stdin: true,
      });
      const one = await startAttach(stage, transport, plain, { stdin: true });
      one.stdin.write('echo out; echo err >&2\n');
      await one.said(/^out\n/);
      // A second one sees what comes from now on, and takes nothing away from the first.
      const two = await startAttach(stage, transport, plain);
      one.stdin.write('while :; do echo again; sleep 0.1; done\n');
      await two.said(/again\n/);
      two.kill('SIGKILL');
      await two.result;
      // The container goes on without the first, too, and takes another.
      one.kill('SIGKILL');
      await one.result;
      const three = await startAttach(stage, transport, plain);
      await three.said(/again\n/);
      await runtime.stopContainer(plain, 0);
      assert.equal((await three.result).code, 0);

      const once = await machine.startContainer(sandbox, ['sh', '-c', 'cat; exit 4'], {
        ...named('once'),
        stdin: true,
        stdinOnce: true,
      });
      const input = await startAttach(stage, transport, once, { stdin: true });
      input.stdin.end('all there is\n');
      const { code, stdout } = await input.result;
      assert.deepEqual([code, stdout.toString()], [0, 'all there is\n']);
      assert.equal((await machine.exited(once)).exitCode, 4);

      const terminal = await machine.startContainer(sandbox, ['sh'], {
        ...named('terminal'),
        stdin: true,
        tty: true,
      });
      const wanted = { tty: true, stdin: true };
      const shell = await startAttach(stage, transport, terminal, wanted, ['-sizes', '81x25,132x43']);
      shell.stdin.write('stty size\n');
      await shell.said(/\n25 81\r\n/);
      shell.stdin.write('resize\n');
      for (let tries = 0; ; tries++) {
        shell.stdin.write(`stty size; echo "try" ${tries}\n`);
        if (/43 132/.test((await shell.said(new RegExp(`.*\\ntry ${tries}\\r\\n`, 's')))[0])) break;
        assert.ok(tries < 50);
      }
      shell.stdin.write('exit 5\n');
      assert.equal((await shell.result).code, 0);
      assert.equal((await machine.exited(terminal)).exitCode, 5);
      await assert.rejects(stage.streaming.attach(request(terminal, {})), (error) =>
        isError(error, 'FAILED_PRECONDITION'),
      );
    });
  }
});

test('attach: who does not read is let go of, and the container goes on', { skip }, async (t) => {
  const { machine } = await setStage(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sh', '-c', 'yes | head -c 20000000; exit 6'], {
    logPath: '',
  });
  const stuck = new Writable({ highWaterMark: 1, write: () => {} });
  await assert.rejects(
    attachToMonitor({
      bundle: `${machine.runDir}/containers/${id}`,
      tty: false,
      streams: { stdout: stuck },
      clock: systemClock,
      stallMs: 300,
    }),
    (error) => isError(error, 'ABORTED') && /nobody read/.test(error.message),
  );
  assert.equal((await machine.exited(id)).exitCode, 6);
});

test('sizes that come while the monitor is busy: the last one holds', { skip }, async (t) => {
  const { machine } = await setStage(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sh'], { stdin: true, tty: true });
  const bundle = `${machine.runDir}/containers/${id}`;
  const monitor = Number(readFileSync(`${bundle}/conmon.pid`, 'utf8'));
  process.kill(monitor, 'SIGSTOP');
  t.after(() => process.kill(monitor, 'SIGCONT'));
  const first = tellMonitor(bundle, '1 20 70', t.signal);
  const second = tellMonitor(bundle, '1 21 71', t.signal);
  await first;
  process.kill(monitor, 'SIGCONT');
  await second;
  const stdin = new PassThrough();
  const stdout = new PassThrough();
  const over = new AbortController();
  const attached = attachToMonitor({
    ...{ bundle, tty: true, streams: { stdin, stdout }, clock: systemClock },
    signal: AbortSignal.any([over.signal, t.signal]),
  });
  attached.catch(() => {});
  // Asked until it is so: that it has been read does not yet mean that it has been done.
  let said = '';
  stdin.write('stty size\n');
  for await (const chunk of stdout) {
    said += chunk;
    if (/^21 71\r$/m.test(said)) break;
    if (/^\d+ \d+\r\n.*[#$] $/ms.test(said)) {
      said = '';
      stdin.write('stty size\n');
    }
  }
  assert.match(said, /21 71/);
  over.abort();
  await assert.rejects(attached);
});

test('exec on a terminal: who leaves at any time leaves nothing behind', { skip }, async (t) => {
  const { machine } = await setStage(t);
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const bundle = `${machine.runDir}/containers/${id}`;
  const files = readdirSync(bundle).sort();
  const before = openDescriptors();
  for (let afterMs = 0; afterMs < 120; afterMs += 10) {
    const streams = { tty: true, stdin: new PassThrough(), stdout: new PassThrough().resume() };
    const leaving = machine.runtime.exec(id, ['sh'], streams, AbortSignal.timeout(afterMs));
    await assert.rejects(leaving, (error) => isError(error, 'ABORTED', 'DEADLINE_EXCEEDED'));
  }
  let left = '';
  await eventually(
    async () => {
      const { stdout } = await machine.runtime.execSync(id, ['ps', '-o', 'args'], 10_000);
      left = `${stdout} ${readdirSync(bundle)} ${openDescriptors() - before}`;
      return (
        !/^sh$/m.test(stdout.toString()) &&
        readdirSync(bundle).sort().join() === files.join() &&
        openDescriptors() <= before
      );
    },
    () => left,
  );
});

test('port-forward into the network of a pod', { skip }, async (t) => {
  const stage = await setStage(t);
  const { machine, streaming } = stage;
  const web = 'mkdir /tmp/www; echo served > /tmp/www/page; exec httpd -f -p [::1]:8081 -h /tmp/www';
  const own = {
    linux: { security: { namespaces: { network: 'pod', pid: 'container', ipc: 'pod' } } },
  } as const;
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(own), '');
  await machine.startContainer(sandbox, ['nc', '-ll', '-p', '8080', '-e', 'cat'], own);
  await machine.startContainer(sandbox, ['sh', '-c', web], { ...own, metadata: { name: 'six', attempt: 0 } });
  for (const transport of transports) {
    await t.test(transport, async () => {
      const url = await streaming.portForward({ podSandboxId: sandbox, ports: [] });
      const before = openDescriptors();
      const ports = '0:8080,0:8081,0:8082';
      const forward = startClient(program, [
        'forward',
        '-url',
        url,
        '-transport',
        transport,
        '-ports',
        ports,
      ]);
      const local: Record<string, number> = {};
      for (const port of ['8080', '8081', '8082']) {
        const [, here] = await forward.said(new RegExp(`127\\.0\\.0\\.1:(\\d+) -> ${port}`));
        local[port] = Number(here);
      }
      const echo = (port: number, text: string | Buffer) =>
        new Promise<Buffer>((resolve, reject) => {
          const chunks: Buffer[] = [];
          const socket = connect({ port, host: '127.0.0.1' });
          socket.on('data', (chunk: Buffer) => chunks.push(chunk));
          socket.on('error', reject);
          socket.on('close', () => resolve(Buffer.concat(chunks)));
          socket.end(text);
        });
      const exchange = async (port: string, text: string | Buffer): Promise<Buffer> => {
        for (let tries = 0; tries < 100; tries++) {
          const answer = await echo(local[port]!, text);
          // The server may not listen yet.
          if (answer.length > 0) return answer;
        }
        throw new Error(`no answer from port ${port}`);
      };
      assert.equal((await exchange('8080', 'hello')).toString(), 'hello');
      assert.match((await exchange('8081', 'GET /page HTTP/1.0\r\n\r\n')).toString(), /200 OK.*served\n$/s);
      const much = Buffer.alloc(8 << 20, 'forward ');
      for (const bytes of await Promise.all([1, 2, 3, 4].map(() => exchange('8080', much)))) {
        assert.ok(bytes.equals(much), `${bytes.length} of ${much.length}`);
      }
      assert.equal((await echo(local['8082']!, 'x').catch(() => Buffer.alloc(0))).length, 0);
      forward.stdin.end();
      const { stderr } = await forward.result;
      assert.match(stderr, /error forwarding port 8082 to pod .*nobody listens on port 8082/);
      await eventually(
        () => openDescriptors() <= before,
        () => `${openDescriptors() - before} descriptors are left`,
      );
    });
  }
  await assert.rejects(streaming.portForward({ podSandboxId: 'nobody', ports: [] }), (error) =>
    isError(error, 'NOT_FOUND'),
  );
});

test('nothing of a streaming session stays in the bundle', { skip }, async (t) => {
  const stage = await setStage(t);
  const { machine } = stage;
  const sandbox = await machine.runtime.runPodSandbox(machine.sandboxConfig(), '');
  const id = await machine.startContainer(sandbox, ['sleep', '1000']);
  const bundle = `${machine.runDir}/containers/${id}`;
  assert.ok(existsSync(bundle));
  const files = readdirSync(bundle).sort();
  assert.equal((await (await startExec(stage, 'spdy', id, ['false'])).result).code, 1);
  assert.equal((await (await startExec(stage, 'spdy', id, ['no'])).result).code, 125);
  assert.deepEqual(readdirSync(bundle).sort(), files);
});
