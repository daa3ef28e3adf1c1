/** Image names as far as credentials and records need them: the repository that a name means. Pure. */

const domainPart = '(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])';
const domain = `(?:${domainPart}(?:\\.${domainPart})*|\\[[a-fA-F0-9:]+\\])(?::[0-9]+)?`;
const component = '[a-z0-9]+(?:(?:\\.|_|__|-+)[a-z0-9]+)*';
/** distribution/reference: `[domain/]path[:tag][@digest]`. */
const grammar = new RegExp(
  `^((?:${domain}/)?${component}(?:/${component})*)(?::\\w[\\w.-]{0,127})?(?:@[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?$`,
);
/** Longer ones are refused before the pattern looks at them. */
const longest = 1024;

/** The name as it was written, less its tag and digest (`busybox` for `busybox:1`); undefined for what is no name. */
export function withoutTag(image: string): string | undefined {
  return image.length > longest ? undefined : grammar.exec(image)?.[1];
}

/** The repository in full, as kubelet looks credentials up for it: `docker.io/library/busybox`. Undefined for no name. */
export function repositoryOf(image: string): string | undefined {
  const name = withoutTag(image);
  if (name === undefined) return undefined;
  const slash = name.indexOf('/');
  const first = name.slice(0, slash);
  const named =
    slash !== -1 && (/[.:]/.test(first) || first === 'localhost' || first.toLowerCase() !== first);
  const host = !named || first === 'index.docker.io' ? 'docker.io' : first;
  const path = named ? name.slice(slash + 1) : name;
  return host === 'docker.io' && !path.includes('/') ? `docker.io/library/${path}` : `${host}/${path}`;
}

/** Host and port of a repository in full. */
export function registryOf(repository: string): string {
  return repository.slice(0, repository.indexOf('/'));
}
