import { sweepComputeSystems } from '../hcs/index.js';

/**
 * Removes what utility VMs of dead owners left: QEMU processes, sockets, folders. To be called at start.
 * @returns Their ids.
 * @throws LcowError IO_FAILED.
 */
export async function sweepUtilityVMs(runtimeFolder: string): Promise<string[]> {
  return sweepComputeSystems(runtimeFolder);
}
