import { posix } from 'node:path';
import { readTar } from '../../disk/index.js';
import { LcowError } from '../../errors/index.js';
import { throwIfAborted } from '../../lifetime/index.js';
import type { ContentStore } from '../content/content-store.js';
import type { Lease } from '../content/leases.js';
import { isDigest, type Digest } from '../digest.js';

/** Most members of an image archive; real ones have some hundreds. */
const MAX_MEMBERS = 65_536;
/** Largest index.json or manifest.json of an archive, in bytes. */
const MAX_DOCUMENT_BYTES = 4 * 1024 * 1024;
/** Longest chain of links between members. */
const MAX_LINKS = 8;

const DOCUMENTS = new Set(['oci-layout', 'index.json', 'manifest.json']);
// Legacy of docker's first image format, in every docker-save archive: nothing reads it.
const LEGACY = /^(?:repositories|[0-9a-f]{64}\/(?:json|VERSION))$/;
// What image archives begin with, by tool: docker save, skopeo, podman, buildx, go-containerregistry, jib, nix.
const MEMBER =
  /^(?:oci-layout|index\.json|manifest\.json|config\.json|repositories|blobs(?:\/(?:sha256|sha512)(?:\/[0-9a-f]+)?)?|(?:sha256:)?[0-9a-f]{64}(?:\.json|\.tar|\.tar\.gz)?|[0-9a-f]{64}\/(?:layer\.tar|json|VERSION))$/;

/** A member's name without what does not matter: `./`, double and trailing slashes. Only ever a key, never a path. */
export function memberName(name: string): string {
  return posix.normalize(`/${name}`).replace(/\/$/, '').slice(1);
}

/** Whether a tar is an image archive, by the name of its first member; else it is a root file system. */
export async function isImageArchive(tar: AsyncIterable<Uint8Array>, what: string): Promise<boolean> {
  for await (const entry of readTar(tar)) {
    const name = memberName(entry.path);
    if (name !== '') return MEMBER.test(name);
  }
  throw new LcowError('BAD_TAR', `${what} is empty: it holds neither an image nor files.`);
}

/** A member of an archive that is in the store now. */
export interface SpooledMember {
  readonly digest: Digest;
  readonly size: number;
}

/** The members of an image archive: its small documents, and blobs in the store by the name they had. */
export class ImageArchive {
  readonly #what: string;
  readonly #documents = new Map<string, Buffer>();
  readonly #members = new Map<string, SpooledMember>();
  readonly #links = new Map<string, string>();

  private constructor(what: string) {
    this.#what = what;
  }

  /**
   * Reads a tar through, once, spooling its files into the store. `blobs/` members must have the digest of their name.
   * @throws LcowError BAD_TAR, DIGEST_MISMATCH, DISK_FULL, CANCELLED.
   */
  static async read(
    tar: AsyncIterable<Uint8Array>,
    content: ContentStore,
    lease: Lease,
    what: string,
    signal?: AbortSignal,
  ): Promise<ImageArchive> {
    const archive = new ImageArchive(what);
    let count = 0;
    for await (const entry of readTar(tar)) {
      throwIfAborted(signal);
      if (++count > MAX_MEMBERS) throw new LcowError('BAD_TAR', `${what} has more than ${MAX_MEMBERS} members.`);
      const name = memberName(entry.path);
      if (entry.type === 'symbolicLink')
        archive.#links.set(name, memberName(posix.join(posix.dirname(name), entry.linkPath)));
      else if (entry.type === 'hardLink') archive.#links.set(name, memberName(entry.linkPath));
      if (entry.type !== 'file' || LEGACY.test(name)) continue;
      if (DOCUMENTS.has(name))
        archive.#documents.set(name, await readSmall(entry.data, entry.size, `${name} of ${what}`));
      else archive.#members.set(name, await content.spool(entry.data, lease, blobDigest(name), signal));
    }
    return archive;
  }

  /** index.json, manifest.json or oci-layout. */
  document(name: string): Buffer | undefined {
    return this.#documents.get(name);
  }

  /** @throws LcowError BAD_TAR when no member has the name. */
  member(name: string): SpooledMember {
    let key = memberName(name);
    for (let hops = 0; hops <= MAX_LINKS; hops++) {
      const member = this.#members.get(key);
      if (member) return member;
      const target = this.#links.get(key);
      if (target === undefined) break;
      key = target;
    }
    throw new LcowError('BAD_TAR', `${this.#what} names the file "${name}" but does not hold it.`);
  }
}

function blobDigest(name: string): Digest | undefined {
  const match = /^blobs\/(sha256|sha512)\/([0-9a-f]+)$/.exec(name);
  const digest = match ? `${match[1]!}:${match[2]!}` : undefined;
  return isDigest(digest) ? digest : undefined;
}

async function readSmall(data: AsyncIterable<Uint8Array>, size: number, what: string): Promise<Buffer> {
  if (size > MAX_DOCUMENT_BYTES)
    throw new LcowError('BAD_MANIFEST', `${what} is larger than ${MAX_DOCUMENT_BYTES} bytes.`);
  const chunks: Uint8Array[] = [];
  for await (const chunk of data) chunks.push(Buffer.from(chunk));
  return Buffer.concat(chunks);
}
