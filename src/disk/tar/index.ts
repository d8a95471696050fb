/** tar: an own streaming reader, without a copy of content and without a promise per member. */
export { readTar, type TarEntry } from './read-tar.js';
export { TarParser, TOKEN, type Token } from './parser.js';
export { readableName, type TarHeader, type TarEntryType } from './entry.js';
