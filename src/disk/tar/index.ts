/** tar: an own streaming reader, without a copy of content and without a promise per member; and a writer. */
export { readTar, type TarEntry } from './read-tar.js';
export { TarParser, TOKEN, type Token } from './parser.js';
export { readableName, type TarHeader, type TarEntryType } from './entry.js';
export { writeTar, END_BYTES, type TarInput } from './write-tar.js';
export { encodeHeader, padded, type TarMember } from './encode-header.js';
export { ChunkWriter } from './chunk-writer.js';
