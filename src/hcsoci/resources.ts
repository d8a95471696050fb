import type { ImageLayers } from '../layers/index.js';
import { releaseAll } from '../lifetime/index.js';
import type { ScsiAttachment, UtilityVM } from '../uvm/index.js';

/**
 * What a container holds besides itself (seed: Resources). It tells a caller nothing but the network namespace; it is
 * handed to {@link releaseResources} when the container has ended.
 */
export class Resources {
  /** @internal */
  readonly containerRootInUVM: string;
  /** @internal */
  layers: ImageLayers | undefined;
  /** @internal */
  readonly scsiMounts: ScsiAttachment[] = [];
  /** @internal */
  networkNamespace: string | undefined;
  /** @internal */
  addedNetNSToVM = false;

  /** @internal Made by createContainer. */
  constructor(containerRootInUVM: string) {
    this.containerRootInUVM = containerRootInUVM;
  }

  /** The id of the network namespace of the container, if it has one. */
  netNS(): string | undefined {
    return this.networkNamespace;
  }
}

/**
 * Releases what a container held (seed: ReleaseResources): its network in the utility VM, disks of mounts, layers. The container must have ended. Every step is tried; a step that failed is tried again
 * by another call, one that was done is not.
 * @param all False when the utility VM is about to end: then only what must be consistent afterwards is released.
 * @throws The single failure, or an AggregateError.
 */
export async function releaseResources(r: Resources, vm: Pick<UtilityVM, 'removeNetNS'>, all: boolean): Promise<void> {
  const releases: (() => unknown)[] = [];
  const netNS = r.networkNamespace;
  if (netNS !== undefined && r.addedNetNSToVM && all)
    releases.push(async () => {
      await vm.removeNetNS(netNS);
      r.addedNetNSToVM = false;
    });
  if (all)
    for (const attachment of [...r.scsiMounts].reverse())
      releases.push(async () => {
        await attachment.release();
        r.scsiMounts.splice(r.scsiMounts.indexOf(attachment), 1);
      });
  const { layers } = r;
  if (layers)
    releases.push(async () => {
      await layers.release(all);
      r.layers = undefined;
    });
  await releaseAll(releases);
}
