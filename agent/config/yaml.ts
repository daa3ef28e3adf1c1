/** YAML as Kubernetes reads it: YAML 1.1 words and numbers (`yes`, `0644` is octal), but no times or dates. */
import type { Document, LineCounter } from 'yaml';

export type YamlParser = (text: string, lines?: LineCounter) => Document.Parsed;

/** Loads the parser, which is not kept in memory by those who never read a file. */
export async function yamlParser(): Promise<YamlParser> {
  const { isScalar, LineCounter, parseDocument, visit, YAMLParseError } = await import('yaml');
  return (text, lineCounter = new LineCounter()) => {
    const document = parseDocument(text, {
      lineCounter,
      schema: 'yaml-1.1',
      version: '1.1',
      prettyErrors: true,
      // The parser compares each key with all before it: a large map would hold up the process for minutes.
      uniqueKeys: false,
      // `22:22` is text, and a date is text: sigs.k8s.io/yaml knows neither base 60 nor timestamps.
      customTags: (tags) =>
        tags.filter(
          (tag) =>
            typeof tag === 'string' ||
            (tag.format !== 'TIME' && !/:(timestamp|set|omap|pairs|binary)$/.test(tag.tag)),
        ),
    });
    if (document.errors.length > 0) return document;
    visit(document, {
      Map(_, { items }) {
        const keys = new Set<unknown>();
        for (const { key } of items) {
          if (!isScalar(key)) continue;
          if (keys.has(key.value)) {
            const [start = 0, end = start] = key.range ?? [];
            const { line, col } = lineCounter.linePos(start);
            const message = `Map keys must be unique at line ${line}, column ${col}`;
            document.errors.push(new YAMLParseError([start, end], 'DUPLICATE_KEY', message));
            return visit.BREAK;
          }
          keys.add(key.value);
        }
      },
    });
    return document;
  };
}
