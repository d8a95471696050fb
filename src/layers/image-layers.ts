import { LcowError } from '../errors/index.js';
import { rootfsPath, unmountContainerLayers, type LayerHost } from './mount.js';
import { UnmountOperation } from './operation.js';

/** The mounted layers of one container (seed: ImageLayers). */
export class ImageLayers {
  readonly #vm: LayerHost;
  readonly #rootfs: string;
  #layers: readonly string[];

  constructor(vm: LayerHost, containerRootInUVM: string, layers: readonly string[]) {
    this.#vm = vm;
    this.#rootfs = rootfsPath(containerRootInUVM);
    this.#layers = layers;
  }

  /**
   * Unmounts the layers. After it has succeeded another call does nothing; after a failure it tries the rest again.
   * @param all Release everything; false when the utility VM is about to end and only the scratch must be consistent.
   */
  async release(all: boolean): Promise<void> {
    if (this.#layers.length === 0) return;
    const op = all ? UnmountOperation.All : UnmountOperation.SCSI;
    try {
      await unmountContainerLayers(this.#layers, this.#rootfs, this.#vm, op);
    } catch (error) {
      // Somebody else has unmounted them.
      if (!(error instanceof LcowError && error.code === 'NOT_ATTACHED')) throw error;
    }
    this.#layers = [];
  }
}

/** The layers that mountContainerLayers has mounted for a container, as a thing that can be released. */
export function newImageLayers(vm: LayerHost, containerRootInUVM: string, layers: readonly string[]): ImageLayers {
  return new ImageLayers(vm, containerRootInUVM, layers);
}
