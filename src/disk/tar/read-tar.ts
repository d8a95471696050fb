import type { TarHeader } from './entry.js';
import { TarParser, TOKEN } from './parser.js';

/** A member of a tar with its content. */
export interface TarEntry extends TarHeader {
  /**
   * The content, `size` bytes. To be read before the next entry is asked for; what is left of it then is skipped.
   * Chunks are views of the source's chunks.
   */
  readonly data: AsyncIterable<Uint8Array>;
}

const ZEROS = Buffer.alloc(64 * 1024);

/**
 * Reads a tar member by member: see {@link TarParser} for what is understood. The source is read to its end.
 * @throws LcowError BAD_TAR from the iterator (or from `data`, when the damage is inside); whatever the source throws.
 */
export async function* readTar(source: AsyncIterable<Uint8Array>): AsyncGenerator<TarEntry, void, undefined> {
  const parser = new TarParser();
  const chunks = source[Symbol.asyncIterator]();
  try {
    /** Resolves to the next token that is not needMore, or undefined at the end of the archive. */
    const next = async (): Promise<number | undefined> => {
      for (;;) {
        const token = parser.step();
        if (token !== TOKEN.needMore) return token;
        const chunk = await chunks.next();
        if (chunk.done) {
          parser.finish();
          return undefined;
        }
        parser.feed(chunk.value);
      }
    };
    for (;;) {
      const token = await next();
      if (token === undefined) return;
      if (token !== TOKEN.entry) continue;
      const content = contentOf(parser, next);
      yield { ...parser.header, data: content };
      // A member whose content was not read, or not to the end: what is left is passed over above.
      await content.return(undefined);
    }
  } finally {
    await chunks.return?.();
  }
}

async function* contentOf(
  parser: TarParser,
  next: () => Promise<number | undefined>,
): AsyncGenerator<Uint8Array, void, undefined> {
  for (;;) {
    const token = await next();
    if (token === TOKEN.data) yield parser.chunk.subarray(parser.dataStart, parser.dataEnd);
    else if (token === TOKEN.hole)
      for (let left = parser.holeBytes; left > 0; left -= ZEROS.length)
        yield ZEROS.subarray(0, Math.min(left, ZEROS.length));
    else return;
  }
}
