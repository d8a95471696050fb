import { LcowError } from '../errors/index.js';
import type { UtilityVM } from '../uvm/index.js';
import type { Resources } from './resources.js';
import type { Mount } from './spec.js';

/** Marks the source of a bind mount as a path of the utility VM (hcsshim). */
const GUEST_PATH_PREFIX = 'uvm://';

/**
 * Makes what the mounts of a specification name on the host present in the utility VM: virtual disks are attached, at
 * `<root>/mounts/m<index>`. Types that have no source on the host are left for the guest's runtime.
 * @returns The mounts with sources of the utility VM; the ones given are not changed.
 * @throws LcowError INVALID_ARGUMENT for a mount without destination or source; NOT_SUPPORTED, by name, for what a
 *   utility VM cannot be given. What was attached is in `resources`.
 */
export async function resolveMounts(
  mounts: readonly Mount[],
  resources: Resources,
  vm: Pick<UtilityVM, 'addSCSI'>,
): Promise<Mount[]> {
  const resolved: Mount[] = [];
  for (const [index, mount] of mounts.entries()) {
    if (!mount.destination)
      throw new LcowError('INVALID_ARGUMENT', `Mount ${index} of the container has no destination.`);
    switch (mount.type) {
      case 'bind':
        resolved.push({ ...mount, source: guestPath(mount) });
        break;
      case 'virtual-disk': {
        const readOnly = (mount.options ?? []).some((option) => option.toLowerCase() === 'ro');
        const attachment = await vm.addSCSI(source(mount), {
          uvmPath: `${resources.containerRootInUVM}/mounts/m${index}`,
          readOnly,
          isLayer: false,
        });
        resources.scsiMounts.push(attachment);
        // "none" with a bind option is what runtimes know: the file system is mounted in the utility VM already.
        const options = (mount.options ?? []).includes('bind') ? [] : ['bind'];
        resolved.push({
          ...mount,
          type: 'none',
          source: attachment.uvmPath,
          options: [...options, ...(mount.options ?? [])],
        });
        break;
      }
      case 'physical-disk':
      case 'automanage-virtual-disk':
        throw new LcowError(
          'NOT_SUPPORTED',
          `The mount at ${mount.destination} has type ${mount.type}, which this engine does not offer.`,
        );
      default:
        resolved.push({ ...mount });
    }
  }
  return resolved;
}

function guestPath(mount: Mount): string {
  const path = source(mount);
  if (!path.startsWith(GUEST_PATH_PREFIX))
    throw new LcowError(
      'NOT_SUPPORTED',
      `The mount at ${mount.destination} shares ${path} of the host, which this engine does not offer.`,
    );
  return path.slice(GUEST_PATH_PREFIX.length);
}

function source(mount: Mount): string {
  if (!mount.source) throw new LcowError('INVALID_ARGUMENT', `The mount at ${mount.destination} has no source.`);
  return mount.source;
}
