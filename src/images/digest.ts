import { createHash } from 'node:crypto';
import { LcowError } from '../errors/index.js';

/** The algorithms registered by the OCI image specification (descriptor.md, "Registered Algorithms"). */
export type DigestAlgorithm = 'sha256' | 'sha512';

/** A content identifier: `sha256:<64 hex>` or `sha512:<128 hex>`, lower case. */
export type Digest = `${DigestAlgorithm}:${string}`;

const DIGEST = /^(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$/;

/** Whether a text is a digest of an algorithm we can check. */
export function isDigest(text: unknown): text is Digest {
  return typeof text === 'string' && DIGEST.test(text);
}

/** @throws LcowError BAD_MANIFEST when the text is no digest; `what` names its owner. */
export function asDigest(text: string, what: string): Digest {
  if (!isDigest(text)) throw new LcowError('BAD_MANIFEST', `${what} is not a sha256 or sha512 digest.`);
  return text;
}

/** The algorithm of a digest. */
export function digestAlgorithm(digest: Digest): DigestAlgorithm {
  return digest.startsWith('sha512:') ? 'sha512' : 'sha256';
}

/** The hexadecimal part of a digest. */
export function digestHex(digest: Digest): string {
  return digest.slice(digest.indexOf(':') + 1);
}

/** The first twelve hexadecimal digits, as docker shows ids. */
export function shortDigest(digest: Digest): string {
  return digestHex(digest).slice(0, 12);
}

/** The digest of bytes in memory. */
export function digestOf(bytes: Uint8Array | string, algorithm: DigestAlgorithm = 'sha256'): Digest {
  return `${algorithm}:${createHash(algorithm).update(bytes).digest('hex')}`;
}
