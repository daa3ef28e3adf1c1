/** The kinds of pods of the soak. Every run of a container keeps a book on the host: what is counted there no status can tell wrongly. */
import type { Container, Pod } from 'kubernetes-types/core/v1.js';
import { makePod, type Stage, webServer } from '../stage.ts';

export const namespace = 'soak';
/** The page that the ConfigMap of the pods `config` has; it is changed while they run. */
export const configName = 'page';

export const kinds = ['serve', 'crash', 'job', 'stubborn', 'stack', 'sick', 'config'] as const;
export type Kind = (typeof kinds)[number];

/** Lines that each run logs before it ends by itself: none may be lost. */
export const lines = 30;

/**
 * `say` writes a line `word run [code]` into the book and the log. A run that is told to end says `term` first, one
 * that ends at all says `end` with its code; only SIGKILL leaves no `end`.
 */
const prelude = `me=$(cat /proc/sys/kernel/random/uuid)
say() { echo "$1 $me $2" >> /book/$SOAK_BOOK; echo "$1 $me $2"; }
finish() { i=0; while [ $i -lt ${lines} ]; do echo "line $me $i"; i=$((i+1)); done; say end $1; exit $1; }
rest() { sleep $1 & wait $!; }
say start
`;
const polite = `trap 'say term; finish 0' TERM\n`;
const scripts = {
  serve: `${polite}while :; do rest 100000; done`,
  crash: (seconds: string) => `${polite}rest ${seconds}; finish 3`,
  job: (seconds: string, code: number) => `${polite}rest ${seconds}; finish ${code}`,
  stubborn: `trap '' TERM; while :; do sleep 1000; done`,
  /** Well for a while, then sick until it is ended. */
  sick: (seconds: string) =>
    `${polite}rest ${seconds}; say bad; touch /tmp/bad; while :; do rest 100000; done`,
} as const;

export const bookOf = (pod: string, container: string) => `${pod}.${container}`;

function container(image: string, pod: string, name: string, script: string): Container {
  return {
    ...webServer(image),
    name,
    command: ['sh', '-c', prelude + script],
    ports: [],
    env: [{ name: 'SOAK_BOOK', value: bookOf(pod, name) }],
    volumeMounts: [
      { name: 'book', mountPath: '/book' },
      { name: 'data', mountPath: '/data' },
    ],
  };
}

/** `books`: the folder on the host. `random`: 0 to below 1. */
export function podOf(stage: Stage, books: string, name: string, kind: Kind, random: number): Pod {
  const image = stage.images.one;
  const seconds = (random * 5).toFixed(1);
  const make = (own: string, script: string) => container(image, name, own, script);
  const web = (script: string) => make('web', script);
  const resources = { requests: { cpu: '5m', memory: '8Mi' }, limits: { cpu: '500m', memory: '64Mi' } };
  const containers: Readonly<Record<Kind, () => readonly Container[]>> = {
    serve: () => [
      {
        ...web(scripts.serve),
        resources,
        readinessProbe: { exec: { command: ['true'] }, periodSeconds: 3 },
      },
    ],
    crash: () => [web(scripts.crash(seconds))],
    job: () => [web(scripts.job(seconds, random < 0.5 ? 0 : 4))],
    stubborn: () => [web(scripts.stubborn)],
    stack: () => [web(scripts.crash(seconds)), make('beside', scripts.serve)],
    sick: () => [
      {
        ...web(scripts.sick((2 + random * 20).toFixed(1))),
        livenessProbe: {
          exec: { command: ['test', '!', '-e', '/tmp/bad'] },
          periodSeconds: 1,
          timeoutSeconds: 30,
        },
      },
    ],
    config: () => {
      const one = web(scripts.serve);
      return [{ ...one, volumeMounts: [...one.volumeMounts!, { name: 'cfg', mountPath: '/cfg' }] }];
    },
  };
  const pod = makePod(namespace, name, {
    restartPolicy: kind === 'job' ? 'Never' : 'Always',
    terminationGracePeriodSeconds: kind === 'stubborn' ? 1 : 20,
    ...(kind === 'stack'
      ? {
          initContainers: [
            make('first', 'finish 0'),
            { ...make('side', scripts.serve), restartPolicy: 'Always' } as Container,
          ],
        }
      : {}),
    containers: [...containers[kind]()],
    volumes: [
      { name: 'book', hostPath: { path: books, type: 'Directory' } },
      { name: 'data', emptyDir: {} },
      ...(kind === 'config' ? [{ name: 'cfg', configMap: { name: configName } }] : []),
    ],
  });
  return { ...pod, metadata: { ...pod.metadata, labels: { kind } } };
}

export const kindOf = ({ metadata }: Pod) => metadata?.labels?.['kind'] as Kind;
