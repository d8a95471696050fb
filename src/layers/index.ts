/** Mounts and unmounts the layers of a container in a utility VM (seed: internal/layers). Knows nothing of OCI specs. */
export { mountContainerLayers, unmountContainerLayers, rootfsPath, type LayerHost } from './mount.js';
export { ImageLayers, newImageLayers } from './image-layers.js';
export { UnmountOperation } from './operation.js';
