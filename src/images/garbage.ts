import type { ContentStore } from './content/content-store.js';
import { IMAGES_LOCK, type IndexEntry } from './content/layout-index.js';
import { withLock } from '../state/index.js';
import { isLcowError } from '../errors/index.js';
import { contentOf, readDocuments } from './image.js';
import type { Digest } from './digest.js';
import type { Unpacker } from './unpack.js';

/**
 * Deletes those of the candidates, blobs and layers, that no image and no running pull needs. To be called under the
 * images' lock.
 * @param candidates Base layers before those on top of them.
 * @returns What was deleted.
 */
export async function collect(
  content: ContentStore,
  unpacker: Unpacker,
  entries: readonly IndexEntry[],
  candidates: Iterable<Digest>,
): Promise<Digest[]> {
  const needed = await neededContent(content, entries);
  const free = [...new Set(candidates)].filter((digest) => !needed.has(digest));
  const deleted: Digest[] = [];
  // Top-most layer first; and layers before blobs, so that what is cut off can be found again by its manifest.
  for (const digest of free.toReversed()) {
    const wasLayer = await unpacker.remove(digest);
    const wasBlob = await content.blobs.remove(digest);
    if (wasLayer || wasBlob !== undefined) deleted.push(digest);
  }
  return deleted;
}

/** As {@link collect}, taking the lock. */
export async function collectLocked(
  content: ContentStore,
  unpacker: Unpacker,
  candidates: Iterable<Digest>,
): Promise<Digest[]> {
  return withLock(content.locks, IMAGES_LOCK, async () =>
    collect(content, unpacker, await content.index.read(), candidates),
  );
}

/**
 * Clears up after pulls that were killed or gave up: layers they had begun at once, and what they had brought whole
 * when nobody has come back for it.
 */
export async function collectAbandoned(content: ContentStore, unpacker: Unpacker): Promise<void> {
  if (!(await content.leases.any())) return;
  await withLock(content.locks, IMAGES_LOCK, async () => {
    const { claimed, dead } = await content.leases.read();
    const entries = await content.index.read();
    const needed = await neededContent(content, entries);
    for (const lease of dead) {
      await unpacker.removeUnfinished(lease.digests.filter((digest) => !claimed.has(digest)));
      if (lease.expired) await collect(content, unpacker, entries, lease.digests);
      // Somebody came back and finished, or it is over.
      if (lease.expired || lease.digests.every((digest) => needed.has(digest))) await lease.remove();
    }
  });
}

async function neededContent(content: ContentStore, entries: readonly IndexEntry[]): Promise<ReadonlySet<string>> {
  const needed = (await content.leases.read()).claimed;
  for (const entry of entries) {
    try {
      for (const digest of contentOf(entry, await readDocuments(content, entry.descriptor.digest))) needed.add(digest);
    } catch (error) {
      // An image that lost a document cannot say what it needs: what it says in the index is kept.
      if (!isLcowError(error, 'NOT_FOUND', 'BAD_MANIFEST', 'DIGEST_MISMATCH', 'NOT_SUPPORTED')) throw error;
      needed.add(entry.descriptor.digest);
      if (entry.indexDigest) needed.add(entry.indexDigest);
    }
  }
  return needed;
}
