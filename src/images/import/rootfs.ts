import { createHash } from 'node:crypto';
import type { RootDocument } from '../acquire.js';
import type { ContentStore } from '../content/content-store.js';
import type { Lease } from '../content/leases.js';
import { decompress } from '../decompress.js';
import type { Digest } from '../digest.js';
import { OCI_LAYER } from '../media-types.js';
import type { Platform } from '../platform.js';
import type { SpooledMember } from './archive.js';
import { layerType, ociManifest } from './docker-archive.js';

/** What a container of an imported root file system runs, as docker import's --change has it. */
export interface RootfsConfig {
  readonly cmd?: readonly string[] | undefined;
  readonly entrypoint?: readonly string[] | undefined;
  /** `NAME=value` each. */
  readonly env?: readonly string[] | undefined;
  readonly workingDir?: string | undefined;
  readonly user?: string | undefined;
  readonly labels?: Readonly<Record<string, string>> | undefined;
}

/** Makes an image of one layer from a tar of a root file system that is in the store, compressed or not. */
export async function rootfsImage(
  content: ContentStore,
  lease: Lease,
  layer: SpooledMember,
  options: RootfsConfig,
  platform: Platform,
  what: string,
  now: Date = new Date(),
): Promise<RootDocument> {
  const mediaType = await layerType(content, layer.digest, what);
  const diffId = mediaType === OCI_LAYER ? layer.digest : await diffIdOf(content, layer.digest, what);
  const created = now.toISOString();
  const config = {
    created,
    architecture: platform.architecture,
    ...(platform.variant && { variant: platform.variant }),
    os: platform.os,
    config: {
      ...(options.user && { User: options.user }),
      Env: options.env ?? ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
      ...(options.entrypoint && { Entrypoint: options.entrypoint }),
      ...(options.cmd && { Cmd: options.cmd }),
      ...(options.workingDir && { WorkingDir: options.workingDir }),
      ...(options.labels && { Labels: options.labels }),
    },
    rootfs: { type: 'layers', diff_ids: [diffId] },
    history: [{ created, comment: 'Imported from a root file system' }],
  };
  const bytes = Buffer.from(JSON.stringify(config));
  const digest = await content.put(bytes, lease);
  return ociManifest({ digest, size: bytes.byteLength }, [{ mediaType, ...layer }]);
}

async function diffIdOf(content: ContentStore, blob: Digest, what: string): Promise<Digest> {
  const hash = createHash('sha256');
  for await (const chunk of decompress(content.blobs.open(blob), what)) hash.update(chunk);
  return `sha256:${hash.digest('hex')}`;
}
