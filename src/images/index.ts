/**
 * Images: references, registries, and the content store. An image comes from a registry, a layout or an archive; its
 * documents and blobs are kept as an OCI image layout, and each layer becomes a graphdriver layer. Knows no VM.
 */
export {
  parseReference,
  formatReference,
  familiarReference,
  familiarName,
  repositoryName,
  type ImageReference,
} from './reference.js';
export { parsePlatform, hostPlatform, formatPlatform, type Platform } from './platform.js';
export { shortDigest, type Digest } from './digest.js';
export type { OciImageConfig, OciRunConfig } from './image-config.js';
export { topLayerId, type Image, type ImageLayer } from './image.js';
export type { ProgressEvent, ProgressListener, ProgressPhase } from './progress.js';
export type { Credentials } from './registry/credentials.js';
export type { RetryPolicy } from './registry/retry.js';
export type { LayerStore } from './unpack.js';
export type { ImageInspect } from './inspect.js';
export {
  ImageStore,
  type PullOptions,
  type PulledImage,
  type ImportOptions,
  type ImageSummary,
  type RemoveOptions,
  type RemovedImage,
} from './image-store.js';
