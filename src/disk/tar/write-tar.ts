import { LcowError } from '../../errors/index.js';
import { ChunkWriter } from './chunk-writer.js';
import { encodeHeader, padded, type TarMember } from './encode-header.js';
import { readableName } from './entry.js';
import { TAR_BLOCK_BYTES } from './format.js';

/** Two blocks of zeros end an archive. */
export const END_BYTES = 2 * TAR_BLOCK_BYTES;

/** A member and its content: `size` bytes, or of a sparse file those of its ranges. An entry of readTar is one. */
export type TarInput = TarMember & { readonly data?: AsyncIterable<Uint8Array> | Iterable<Uint8Array> | undefined };

/**
 * Writes a tar in pax format: headers are ustar as far as they can be, so that every tar reads them. Equal members give
 * equal bytes. Pulled by its consumer, chunk by chunk, each up to 1 MiB and the consumer's to keep.
 * @throws LcowError INVALID_ARGUMENT when content is not as long as its member says; what the source throws.
 */
export async function* writeTar(
  members: AsyncIterable<TarInput> | Iterable<TarInput>,
): AsyncGenerator<Uint8Array, void, undefined> {
  const out = new ChunkWriter(false);
  for await (const member of members) {
    const { blocks, contentBytes } = encodeHeader(member);
    yield* pieces(out, blocks);
    let left = contentBytes;
    if (member.type === 'file')
      for await (const piece of member.data ?? []) {
        left -= piece.length;
        if (left < 0) break;
        yield* pieces(out, piece);
      }
    if (left !== 0)
      throw new LcowError(
        'INVALID_ARGUMENT',
        `The content of tar member ${JSON.stringify(readableName(member.path))} is not ${contentBytes} bytes long.`,
      );
    yield* pieces(out, ZEROS.subarray(0, padded(contentBytes) - contentBytes));
  }
  yield* pieces(out, ZEROS.subarray(0, END_BYTES));
  if (out.length > 0) yield out.take();
}

const ZEROS = new Uint8Array(END_BYTES);

function* pieces(out: ChunkWriter, bytes: Uint8Array): Generator<Uint8Array, void, undefined> {
  for (let at = 0; at < bytes.length;) {
    if (out.room === 0) yield out.take();
    const length = Math.min(out.room, bytes.length - at);
    out.append(bytes.subarray(at, at + length));
    at += length;
  }
}
