import { realpath } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { LcowError } from '../errors/index.js';
import { releaseAll, Scope } from '../lifetime/index.js';
import { asIoError } from '../state/index.js';
import type { ScsiAttachment, UtilityVM } from '../uvm/index.js';
import { UnmountOperation } from './operation.js';

/** What this room needs of a utility VM. */
export type LayerHost = Pick<UtilityVM, 'addSCSIBatch' | 'combineLayers' | 'removeLayers'>;

/** What one container's layers hold in a utility VM; each part goes when it is released. */
interface MountedLayers {
  combined: boolean;
  scratch: ScsiAttachment | undefined;
  /** Base first, so that releasing from the end takes the top-most first. */
  readonly layers: ScsiAttachment[];
}

// The seed threw the handles away and looked disks up by path again, which cannot tell one container's share of a layer
// from another's. The key of the inner map is the path of the root file system.
const mounted = new WeakMap<LayerHost, Map<string, MountedLayers>>();

/** Path of a container's root file system in the utility VM. */
export function rootfsPath(guestRoot: string): string {
  return `${guestRoot}/rootfs`;
}

/**
 * Adds the layers and the scratch of a container to a utility VM and combines them (seed: MountContainerLayers).
 *
 * The scratch is mounted at `<guestRoot>/scratch`, not at the container's root itself: what the guest keeps for the
 * container then stays when the scratch is full or fails.
 *
 * @param layerFolders Top-most read-only layer first, base layer next to last, scratch last; each layer folder holds a
 *   layer.vhd, the scratch folder a sandbox.vhdx. (The comment in hcsshim says base first; its code means this.)
 * @param guestRoot Folder of the container in the utility VM.
 * @returns The path of the root file system in the utility VM.
 * @throws LcowError INVALID_ARGUMENT for less than one layer and a scratch; what the utility VM says. Nothing stays
 *   mounted then.
 */
export async function mountContainerLayers(
  layerFolders: readonly string[],
  guestRoot: string,
  vm: LayerHost,
): Promise<string> {
  const [scratchFolder, readOnlyFolders] = splitFolders(layerFolders);
  const rootfs = rootfsPath(guestRoot);
  const ofVm = mounted.get(vm) ?? new Map<string, MountedLayers>();
  mounted.set(vm, ofVm);
  if (ofVm.has(rootfs)) throw new LcowError('ALREADY_EXISTS', `Layers are mounted at ${rootfs} already.`);
  const entry: MountedLayers = { combined: false, scratch: undefined, layers: [] };
  // Entered before anything is awaited: a second mount at the same place must find it.
  ofVm.set(rootfs, entry);
  const undo = new Scope();
  undo.defer(() => ofVm.delete(rootfs));
  try {
    // A shared scratch is a symbolic link to its owner's disk; disks are known by their real path.
    const scratchDisk = await resolveDisk(join(scratchFolder, 'sandbox.vhdx'));
    const attachments = await vm.addSCSIBatch([
      ...readOnlyFolders.map((folder) => ({ hostPath: join(folder, 'layer.vhd'), readOnly: true, isLayer: true })),
      { hostPath: scratchDisk, uvmPath: `${guestRoot}/scratch`, readOnly: false, isLayer: false },
    ]);
    for (const attachment of attachments) undo.defer(() => attachment.release());
    const scratch = attachments.at(-1)!;
    const layers = attachments.slice(0, -1);

    await vm.combineLayers(
      layers.map(({ uvmPath }) => uvmPath),
      scratch.uvmPath,
      rootfs,
    );
    entry.combined = true;
    entry.scratch = scratch;
    entry.layers.push(...layers.reverse());
    return rootfs;
  } catch (error) {
    return await undo.undo(error);
  }
}

/**
 * Releases what {@link mountContainerLayers} made (seed: UnmountContainerLayers): the combined layers always and first,
 * then the scratch and the layers as `op` says. Every step is tried; what failed can be released by another call, and
 * what was released is not released again.
 * @param layerFolders As they were mounted.
 * @param containerRootPath What mountContainerLayers returned.
 * @throws LcowError INVALID_ARGUMENT for fewer than two folders; NOT_ATTACHED when nothing is mounted there; the single
 *   failure, or an AggregateError.
 */
export async function unmountContainerLayers(
  layerFolders: readonly string[],
  containerRootPath: string,
  vm: LayerHost,
  op: UnmountOperation = UnmountOperation.All,
): Promise<void> {
  splitFolders(layerFolders);
  const ofVm = mounted.get(vm);
  const entry = ofVm?.get(containerRootPath);
  if (!ofVm || !entry) throw new LcowError('NOT_ATTACHED', `No layers are mounted at ${containerRootPath}.`);

  const releases: (() => Promise<void>)[] = [];
  if (entry.combined)
    releases.push(async () => {
      await vm.removeLayers(containerRootPath);
      entry.combined = false;
    });
  const { scratch } = entry;
  if (op & UnmountOperation.SCSI && scratch)
    releases.push(async () => {
      await scratch.release();
      entry.scratch = undefined;
    });
  if (op & UnmountOperation.VPMEM)
    for (const layer of [...entry.layers].reverse())
      releases.push(async () => {
        await layer.release();
        entry.layers.splice(entry.layers.indexOf(layer), 1);
      });
  try {
    await releaseAll(releases);
  } finally {
    if (!entry.combined && !entry.scratch && entry.layers.length === 0) ofVm.delete(containerRootPath);
  }
}

function splitFolders(layerFolders: readonly string[]): [scratch: string, readOnly: readonly string[]] {
  const scratch = layerFolders.at(-1);
  if (scratch === undefined || layerFolders.length < 2)
    throw new LcowError('INVALID_ARGUMENT', 'A container needs at least one read-only layer and a scratch.');
  return [scratch, layerFolders.slice(0, -1)];
}

async function resolveDisk(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT')
      throw new LcowError('NOT_FOUND', `The scratch disk of ${basename(path)} does not exist: ${path}.`, {
        cause: error,
      });
    throw asIoError(error, `The scratch disk ${path} cannot be found`);
  }
}
