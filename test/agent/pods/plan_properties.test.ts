/**
 * The planner against a small model of a runtime, with seeded chance: actions end in any order and fail, containers
 * exit, sandboxes get lost, the agent forgets, pods are deleted.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Pod, PodContainer, PodStatus } from '../../../agent/apiserver/types.ts';
import { type Action, due } from '../../../agent/pods/plan/actions.ts';
import {
  containerBackoff,
  failedAgain,
  imageBackoff,
  sandboxBackoff,
} from '../../../agent/pods/plan/backoff.ts';
import { newMemory, type PodMemory, without, withTermination } from '../../../agent/pods/plan/memory.ts';
import { type Plan, plan } from '../../../agent/pods/plan/plan.ts';
import { needsRestart, withChange } from '../../../agent/pods/resources/resize_plan.ts';
import { containerHash } from '../../../agent/pods/spec/container_config.ts';
import { annotationNames, restartsAfter } from '../../../agent/pods/spec/pod.ts';
import type { ContainerStatus, PodSandboxStatus } from '../../../runtime/api.ts';
import { makeContainer, makePod, makeSandbox, seeded, time } from './objects.ts';

interface Model {
  sandboxes: PodSandboxStatus[];
  containers: ContainerStatus[];
  count: number;
}

function randomPod(random: () => number): Pod {
  const names = (prefix: string, most: number) =>
    Array.from({ length: Math.floor(random() * (most + 1)) }, (_, index) => `${prefix}${index}`);
  const preStop = { exec: { command: ['true'] } };
  const init = names('i', 3).map(
    (name): PodContainer => ({
      name,
      image: 'i:1',
      ...(random() < 0.4 ? { restartPolicy: 'Always' } : {}),
      ...(random() < 0.3 ? { lifecycle: { preStop } } : {}),
    }),
  );
  const rule = (): object => {
    if (random() < 0.7) return {};
    const action = random() < 0.5 ? 'Restart' : 'RestartAllContainers';
    const restartPolicyRules = [{ action, exitCodes: { operator: 'In', values: [1] } }];
    return { restartPolicy: random() < 0.5 ? 'Never' : 'OnFailure', restartPolicyRules };
  };
  const regular = ['app', ...names('r', 2)].map(
    (name): PodContainer => ({
      name,
      image: 'r:1',
      resources: { limits: { memory: '64Mi' } },
      ...(random() < 0.3
        ? { resizePolicy: [{ resourceName: 'memory', restartPolicy: 'RestartContainer' }] }
        : {}),
      ...rule(),
    }),
  );
  const restartPolicy = ['Always', 'OnFailure', 'Never'][Math.floor(random() * 3)]!;
  return makePod({ initContainers: init, containers: regular, restartPolicy });
}

function run(seed: number): void {
  const random = seeded(seed);
  const say = (what: string) => `seed ${seed}: ${what}`;
  let pod = randomPod(random);
  const init = pod.spec?.initContainers ?? [];
  const isSidecar = (name: string) => init.find((one) => one.name === name)?.restartPolicy === 'Always';
  const all = () => [
    ...init,
    ...(pod.spec?.containers ?? []),
    ...((pod.spec?.ephemeralContainers ?? []) as PodContainer[]),
  ];
  const model: Model = { sandboxes: [], containers: [], count: 0 };
  let memory: PodMemory = newMemory(time);
  let now = time;
  let old: PodStatus | undefined;
  let terminal: string | undefined;
  const flight = new Map<string, { action: Action; deadline?: number; abort: boolean }>();
  const restartsOf = new Map<string, number>();
  const attempts = new Set<string>();
  /** What was written, the newest last: a restarted agent may find an older one than it has made. */
  const written: PodStatus[] = [];
  /** Containers that were ended to be made anew. */
  const stopped = new Set<string>();
  /** Containers that are to go on: nobody has asked for their end. */
  const wellRunning = ({ id, metadata, annotations, podSandboxId, state }: ContainerStatus) => {
    const container = all().find(({ name }) => name === metadata.name)!;
    return (
      state === 'running' &&
      annotations['io.kubernetes.container.hash'] === containerHash(container) &&
      memory.probes[id]?.failed === undefined &&
      !needsRestart(memory.resize, container, pod, model.containers.find((one) => one.id === id)!) &&
      model.sandboxes.some((box) => box.id === podSandboxId && box.state === 'ready')
    );
  };
  const newestFirst = () => {
    model.sandboxes.sort((a, b) => b.metadata.attempt - a.metadata.attempt);
    model.containers.sort((a, b) => b.createdAt - a.createdAt);
  };

  function exit(id: string, exitCode: number): void {
    model.containers = model.containers.map((one) =>
      one.id === id
        ? {
            ...one,
            state: 'exited',
            exitCode,
            reason: exitCode === 0 ? 'Completed' : 'Error',
            finishedAt: now,
          }
        : one,
    );
  }

  /** What the action does to the world and to the memory; `fails` as the doing code would remember it. */
  function finish(action: Action, aborted: boolean): void {
    const fails = random() < 0.15;
    if (aborted && random() < 0.7) return;
    if (/^(stop|stopSandbox|removeSandbox|removeContainer|tearDown|erase)$/.test(action.kind)) {
      const { [action.key]: before, ...others } = memory.teardownFailures;
      const failure = failedAgain(before, 'FailedKillPod', 'm', now, containerBackoff);
      const teardownFailures = fails ? { ...others, [action.key]: failure } : others;
      memory = { ...memory, teardownFailures };
      if (fails) return;
    }
    switch (action.kind) {
      case 'cgroup':
        memory = { ...memory, cgroupReady: true };
        break;
      case 'volumes':
        if (fails)
          memory = {
            ...memory,
            volumesFailure: failedAgain(memory.volumesFailure, 'FailedMount', 'm', now, sandboxBackoff),
          };
        else memory = { ...memory, volumes: 'ready', volumesFailure: undefined };
        break;
      case 'sandbox':
        assert.ok(!model.sandboxes.some(({ state }) => state === 'ready'), say('two ready sandboxes'));
        if (fails)
          memory = {
            ...memory,
            sandboxFailure: failedAgain(memory.sandboxFailure, 'x', 'm', now, sandboxBackoff),
          };
        else {
          memory = { ...memory, sandboxFailure: undefined };
          model.sandboxes.push(
            makeSandbox(`s${++model.count}`, { attempt: action.attempt, createdAt: now + model.count }),
          );
        }
        break;
      case 'image': {
        const failure = failedAgain(
          memory.images[action.container]?.failure,
          'ErrImagePull',
          'm',
          now,
          imageBackoff,
        );
        const result = fails
          ? { attempt: action.attempt, failure }
          : { attempt: action.attempt, imageId: 'sha256:abc' };
        memory = { ...memory, images: { ...memory.images, [action.container]: result } };
        break;
      }
      case 'create': {
        if (fails) {
          const failure = failedAgain(
            memory.startFailures[action.container],
            'CreateContainerError',
            'm',
            now,
            containerBackoff,
          );
          memory = { ...memory, startFailures: { ...memory.startFailures, [action.container]: failure } };
          break;
        }
        if (!model.sandboxes.some(({ id, state }) => id === action.sandboxId && state === 'ready')) break;
        const now0 = model.containers.find(({ metadata }) => metadata.name === action.container);
        assert.ok(now0?.state !== 'running', say(`${action.container} is made beside one that runs`));
        const container = all().find((one) => one.name === action.container)!;
        model.containers.push(
          makeContainer(`c${++model.count}`, container, 'created', {
            attempt: action.attempt,
            podSandboxId: action.sandboxId,
            createdAt: now + model.count,
          }),
        );
        const made = model.containers.at(-1)!;
        model.containers[model.containers.length - 1] = {
          ...made,
          annotations: {
            ...made.annotations,
            [annotationNames.resources]: JSON.stringify(container.resources),
          },
        };
        break;
      }
      case 'resize':
        if (memory.resize?.progress?.generation !== action.generation) break;
        memory = { ...memory, resize: { ...memory.resize, actuated: true } };
        break;
      case 'resized': {
        if (memory.resize?.progress?.generation !== action.generation) break;
        for (const one of model.containers) {
          const container = all().find(({ name }) => name === one.metadata.name)!;
          const late: boolean = one.state === 'running' && needsRestart(memory.resize, container, pod, one);
          assert.ok(!late, say(`the resize is done before ${one.metadata.name} was made anew`));
        }
        memory = { ...memory, resize: undefined };
        break;
      }
      case 'start': {
        const found = model.containers.find(({ id }) => id === action.id);
        if (found?.state !== 'created') break;
        if (fails) {
          const failure = failedAgain(
            memory.startFailures[action.container],
            'RunContainerError',
            'm',
            now,
            containerBackoff,
          );
          memory = {
            ...memory,
            broken: [...memory.broken, action.id],
            startFailures: { ...memory.startFailures, [action.container]: failure },
          };
          break;
        }
        const twin = model.containers.some(
          ({ state, metadata }) => state === 'running' && metadata.name === action.container,
        );
        assert.ok(!twin, say(`${action.container} runs twice`));
        const name = `${action.container}/${found.metadata.attempt}`;
        assert.ok(!attempts.has(name), say(`${name} was started twice`));
        attempts.add(name);
        if (action.container.startsWith('e'))
          assert.equal(found.metadata.attempt, 0, say(`${action.container} was started again`));
        checkOrder(action.container, found.podSandboxId);
        memory = { ...memory, startFailures: without(memory.startFailures, action.container) };
        model.containers = model.containers.map((one) =>
          one.id === action.id ? { ...one, state: 'running', startedAt: now } : one,
        );
        break;
      }
      case 'stop':
        stopped.add(action.id);
        if (model.containers.find(({ id }) => id === action.id)?.state === 'running')
          exit(action.id, random() < 0.5 ? 0 : 143);
        break;
      case 'preStop':
        memory = { ...memory, hooked: [...memory.hooked, action.id] };
        break;
      case 'stopSandbox':
        for (const one of model.containers)
          if (one.podSandboxId === action.id && one.state === 'running') exit(one.id, 137);
        model.sandboxes = model.sandboxes.map((one) =>
          one.id === action.id ? { ...one, state: 'notready' } : one,
        );
        memory = { ...memory, stoppedSandboxes: [...memory.stoppedSandboxes, action.id] };
        break;
      case 'removeSandbox':
        for (const { id, podSandboxId, state } of model.containers)
          assert.ok(podSandboxId !== action.id || state !== 'running', say(`${id} ran in a removed sandbox`));
        model.sandboxes = model.sandboxes.filter(({ id }) => id !== action.id);
        model.containers = model.containers.filter(({ podSandboxId }) => podSandboxId !== action.id);
        break;
      case 'removeContainer':
        assert.notEqual(
          model.containers.find(({ id }) => id === action.id)?.state,
          'running',
          say('a running one was removed'),
        );
        model.containers = model.containers.filter(({ id }) => id !== action.id);
        break;
      case 'tearDown':
        assert.ok(
          !model.containers.some(({ state }) => state === 'running'),
          say('volumes went under a running container'),
        );
        memory = { ...memory, volumes: 'gone' };
        break;
      case 'erase':
        memory = { ...memory, erased: true };
        break;
      case 'note':
        memory = { ...memory, noted: { ...memory.noted, [action.key]: action.occasion } };
    }
  }

  /** What comes before it has succeeded, or is a sidecar that has been started, since the sandbox was made. */
  function checkOrder(name: string, sandboxId: string): void {
    const here = model.containers.filter(({ podSandboxId }) => podSandboxId === sandboxId);
    const begun = pod.spec?.containers.some((one) =>
      here.some(({ metadata, startedAt }) => metadata.name === one.name && startedAt > 0),
    );
    if (begun || name.startsWith('e')) return;
    const place = init.findIndex((one) => one.name === name);
    for (const before of place < 0 ? init : init.slice(0, place)) {
      const done = here.some(
        ({ metadata, state, exitCode, startedAt }) =>
          metadata.name === before.name &&
          (isSidecar(before.name) ? startedAt > 0 : state === 'exited' && exitCode === 0),
      );
      assert.ok(done, say(`${name} overtook ${before.name}`));
    }
  }

  /** Sidecars are stopped after those that they serve, the last one first, while there is time. */
  function checkStops(next: Plan): void {
    if (memory.termination === undefined || now >= memory.termination.deadline) return;
    const live = model.containers
      .filter(({ state }) => state === 'running')
      .map(({ metadata }) => metadata.name);
    for (const action of next.actions) {
      if (action.kind !== 'stop' || !isSidecar(action.container) || flight.has(action.key)) continue;
      const place = init.findIndex(({ name }) => name === action.container);
      for (const name of live) {
        const later = !isSidecar(name) || init.findIndex((one) => one.name === name) > place;
        assert.ok(!later, say(`${action.container} is stopped before ${name}`));
      }
    }
  }

  /** Nothing is stopped that should go on, nothing is made again that should not, nothing is tried again at once. */
  function checkReasons(next: Plan): void {
    const begun = old?.conditions?.some(
      ({ type, status }) => type === 'AllContainersRestarting' && status === 'True',
    );
    const restartingAll =
      begun ||
      next.status.conditions?.some(
        ({ type, status }) => type === 'AllContainersRestarting' && status === 'True',
      );
    for (const action of next.actions) {
      if (flight.has(action.key)) continue;
      const held = memory.teardownFailures[action.key]?.retryAt ?? 0;
      assert.ok(held <= now, say(`${action.key} is tried again at once`));
      if (memory.termination !== undefined || restartingAll) continue;
      if (action.kind === 'stop') {
        const one = model.containers.find(({ id }) => id === action.id)!;
        // Sidecars and ephemeral containers end with the pod.
        const ends = next.interruptStarts;
        assert.ok(ends || !wellRunning(one), say(`${action.container} is stopped for nothing`));
        if (ends)
          for (const { name } of pod.spec!.containers) {
            const newest = model.containers.find(({ metadata }) => metadata.name === name);
            assert.ok(
              newest === undefined || !wellRunning(newest),
              say(`the pod is ended while ${name} runs`),
            );
          }
      }
      if (action.kind !== 'create') continue;
      const container = all().find(({ name }) => name === action.container)!;
      const newest = model.containers.find(({ metadata }) => metadata.name === action.container);
      const sameBox = newest?.podSandboxId === action.sandboxId;
      const changed = newest?.annotations['io.kubernetes.container.hash'] !== containerHash(container);
      if (newest?.state !== 'exited' || !sameBox || changed || container.name.startsWith('i')) continue;
      assert.ok(
        restartsAfter(pod, container, newest.exitCode) || stopped.has(newest.id),
        say(`${container.name} runs again after ${newest.exitCode}`),
      );
    }
  }

  function check(next: Plan): void {
    checkStops(next);
    checkReasons(next);
    const { status } = next;
    const types = status.conditions?.map(({ type }) => type) ?? [];
    assert.equal(new Set(types).size, types.length, say('a condition twice'));
    const condition = (type: string) => status.conditions?.find((one) => one.type === type);
    if (condition('Ready')?.status === 'True') {
      assert.equal(condition('ContainersReady')?.status, 'True', say('Ready without ContainersReady'));
      assert.equal(status.phase, 'Running', say('Ready but not Running'));
    }
    for (const one of status.conditions ?? []) {
      const before = old?.conditions?.find(({ type }) => type === one.type);
      if (before?.status === one.status)
        assert.equal(one.lastTransitionTime, before.lastTransitionTime, say('moved'));
    }
    const { containerStatuses = [], initContainerStatuses = [], ephemeralContainerStatuses = [] } = status;
    assert.equal(containerStatuses.length, pod.spec?.containers.length);
    if (memory.final === undefined)
      assert.equal(ephemeralContainerStatuses.length, pod.spec?.ephemeralContainers?.length ?? 0);
    for (const one of ephemeralContainerStatuses) assert.equal(one.restartCount, 0, say('ran again'));
    for (const one of [...containerStatuses, ...initContainerStatuses, ...ephemeralContainerStatuses]) {
      assert.equal(Object.keys(one.state ?? {}).length, 1, say(`${one.name} in two states`));
      const before = restartsOf.get(one.name) ?? 0;
      assert.ok(one.restartCount >= before, say(`the restarts of ${one.name} went back`));
      restartsOf.set(one.name, one.restartCount);
    }
    if (terminal !== undefined) assert.equal(status.phase, terminal, say('left a terminal phase'));
    if (status.phase === 'Succeeded' || status.phase === 'Failed') {
      assert.ok(
        !model.containers.some(({ state }) => state === 'running'),
        say('told the end while something runs'),
      );
      terminal = status.phase;
    }
    if (next.gone) {
      assert.deepEqual([model.sandboxes, model.containers], [[], []], say('gone but something is left'));
      assert.equal(memory.volumes, 'gone');
      assert.ok(memory.erased);
      assert.equal([...flight.keys()].length, 0, say('gone but something is under way'));
    }
    if (memory.termination !== undefined) {
      for (const { kind } of next.actions)
        assert.ok(
          !['sandbox', 'create', 'start', 'image', 'volumes'].includes(kind),
          say(`${kind} while terminating`),
        );
    }
    const keys = next.actions.map(({ key }) => key);
    assert.equal(new Set(keys).size, keys.length, say(`one key twice: ${keys.join()}`));
  }

  let quiet = 0;
  for (let turn = 0; turn < 400; turn++) {
    newestFirst();
    memory = withTermination(memory, pod, false, now);
    const input = {
      pod,
      observed: { sandboxes: [...model.sandboxes], containers: [...model.containers] },
      memory,
      inFlight: flight,
      old,
      hostIps: ['192.0.2.1'],
      now,
    };
    const next = plan(input);
    assert.deepEqual(plan(input), next, say('not a function of its input'));
    check(next);
    old = next.status;
    written.push(next.status);
    if (next.final && memory.termination !== undefined && memory.final === undefined)
      memory = { ...memory, final: next.status };
    if (next.gone) return;
    if (next.interruptStarts)
      for (const [key, one] of flight)
        if (/^(cgroup|volumes|sandbox$|image|create|start)/.test(key)) one.abort = true;
    const { start } = due(next.actions, flight);
    for (const action of start) {
      flight.set(action.key, {
        action,
        abort: false,
        ...('deadline' in action ? { deadline: action.deadline } : {}),
      });
      if (action.kind === 'create' && action.crash !== undefined)
        memory = { ...memory, crash: { ...memory.crash, [action.container]: action.crash } };
    }
    // Something happens: an action ends, time passes, a container exits, a sandbox is lost, the agent restarts.
    const chance = random();
    const [key, one] = [...flight][Math.floor(random() * flight.size)] ?? [];
    if (key !== undefined && one !== undefined && chance < 0.75) {
      flight.delete(key);
      finish(one.action, one.abort);
      quiet = 0;
    } else if (chance < 0.85) {
      const running = model.containers.filter(({ state }) => state === 'running');
      const victim = running[Math.floor(random() * running.length)];
      if (victim !== undefined) exit(victim.id, random() < 0.5 ? 0 : 1);
    } else if (chance < 0.88 && memory.termination === undefined) {
      const box = model.sandboxes.find(({ state }) => state === 'ready');
      if (box !== undefined) {
        for (const { id, podSandboxId, state } of model.containers)
          if (podSandboxId === box.id && state === 'running') exit(id, 137);
        model.sandboxes = model.sandboxes.map((each) =>
          each === box ? { ...each, state: 'notready' } : each,
        );
      }
    } else if (chance < 0.9 && flight.size === 0) {
      // What the allocation has on disk of a resize survives; the status that was written last may be an older one.
      memory = { ...newMemory(now), resize: memory.resize };
      old = written.at(-1 - Math.floor(random() ** 3 * Math.min(3, written.length))) ?? old;
      restartsOf.clear();
    } else if (chance < 0.905 && memory.termination === undefined) {
      const running = model.containers.filter(({ state }) => state === 'running');
      const victim = running[Math.floor(random() * running.length)];
      if (victim !== undefined)
        memory = { ...memory, probes: { ...memory.probes, [victim.id]: { failed: 'liveness' } } };
    } else if (chance < 0.908) {
      const change = (one: PodContainer): PodContainer => ({ ...one, image: `${one.image}x` });
      const index = Math.floor(random() * pod.spec!.containers.length);
      const containers = pod.spec!.containers.map((one, place) => (place === index ? change(one) : one));
      pod = { ...pod, spec: { ...pod.spec!, containers } };
    } else if (chance < 0.912 && memory.termination === undefined) {
      const memoryLimit = random() < 0.5 ? '64Mi' : '96Mi';
      const containers = pod.spec!.containers.map((one) => ({
        ...one,
        resources: { limits: { memory: memoryLimit } },
      }));
      pod = { ...pod, spec: { ...pod.spec!, containers } };
      memory = { ...memory, resize: withChange(memory.resize, { pending: undefined, begun: turn }) };
    } else if (chance < 0.922 && (pod.spec?.ephemeralContainers?.length ?? 0) < 2) {
      const { ephemeralContainers = [] } = pod.spec!;
      const name = `e${ephemeralContainers.length}`;
      pod = {
        ...pod,
        spec: { ...pod.spec!, ephemeralContainers: [...ephemeralContainers, { name, image: 'e:1' }] },
      };
    } else if (turn > 150 && memory.termination === undefined)
      pod = {
        ...pod,
        metadata: {
          ...pod.metadata,
          deletionTimestamp: '2026-01-01T00:00:00Z',
          deletionGracePeriodSeconds: 30,
        },
      };
    if (flight.size === 0) {
      // It must know when to go on, unless all is well or over.
      const runs = model.containers.some(({ state }) => state === 'running');
      assert.ok(
        runs || next.wakeAt !== undefined || next.final || start.length > 0 || ++quiet < 20,
        say('waits for nothing'),
      );
      now = Math.max(now + 1, next.wakeAt ?? now + 1000);
    } else now += Math.floor(random() * 50);
  }
  assert.notEqual(memory.termination, undefined, say('was never deleted'));
  assert.fail(say('did not come to an end'));
}

test('whatever happens, the rules hold and a deleted pod goes', () => {
  for (let seed = 1; seed <= 200; seed++) run(seed);
});
