import { LcowError } from '../errors/index.js';
import { listNamespaceEndpoints, type HNSEndpoint } from '../hns/index.js';
import type { UtilityVM } from '../uvm/index.js';
import type { Resources } from './resources.js';

/**
 * The endpoints of a network namespace (seed: GetNamespaceEndpoints).
 * @throws LcowError NOT_FOUND
 */
export async function getNamespaceEndpoints(netNS: string): Promise<HNSEndpoint[]> {
  return listNamespaceEndpoints(netNS);
}

/** The network of a container in its utility VM. */
export interface ContainerNetwork {
  /** Of the namespace, in the utility VM. */
  readonly path: string;
  readonly endpoints: readonly HNSEndpoint[];
}

/**
 * Makes the namespace in the utility VM and moves its adapters there.
 * @throws LcowError NOT_FOUND; what the utility VM says, with nothing left in it.
 */
export async function addNetworkToVm(
  netNS: string,
  resources: Resources,
  vm: Pick<UtilityVM, 'addNetNS' | 'addEndpointsToNS' | 'removeNetNS'>,
): Promise<ContainerNetwork> {
  const endpoints = await getNamespaceEndpoints(netNS);
  resources.networkNamespace = netNS;
  const path = await vm.addNetNS(netNS);
  resources.addedNetNSToVM = true;
  try {
    await vm.addEndpointsToNS(netNS, endpoints);
  } catch (error) {
    try {
      await vm.removeNetNS(netNS);
      resources.addedNetNSToVM = false;
    } catch (undoFailure) {
      if (error instanceof LcowError) error.undoFailures.push(undoFailure);
    }
    throw error;
  }
  return { path, endpoints };
}
