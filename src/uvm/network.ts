import { LcowError } from '../errors/index.js';

/** A network adapter of a utility VM and its addresses (an HNS endpoint). */
export interface NetworkEndpoint {
  readonly id: string;
  readonly macAddress: string;
  /** In CIDR notation. */
  readonly addresses?: readonly string[];
  readonly gateway?: string | undefined;
  /** Bytes; the device's when not given. */
  readonly mtu?: number;
  /** Host end; the user-mode network with its usual addresses when not given. */
  readonly backend?: {
    readonly Type: 'User';
    readonly Network?: string;
    readonly Gateway?: string;
    readonly Dns?: string;
  };
}

/** What the guest does for networks. */
export interface NetworkGuest {
  /** @returns The path of the namespace in the utility VM. */
  addNamespace(namespaceId: string): Promise<string>;
  removeNamespace(namespaceId: string): Promise<void>;
  addAdapter(namespaceId: string, endpoint: NetworkEndpoint, interfaceName: string): Promise<void>;
  removeAdapter(namespaceId: string, adapterId: string): Promise<void>;
}

interface Namespace {
  readonly path: string;
  /** Interface names by endpoint id. */
  readonly adapters: Map<string, string>;
}

/** Network namespaces of a utility VM, and which adapter is in which (hcsshim uvm.namespaces). */
export class NetworkManager {
  readonly #guest: NetworkGuest;
  readonly #present: ReadonlySet<string>;
  readonly #namespaces = new Map<string, Namespace | 'adding'>();

  /** @param adapters Endpoints the VM was started with. */
  constructor(guest: NetworkGuest, adapters: readonly NetworkEndpoint[]) {
    this.#guest = guest;
    this.#present = new Set(adapters.map(({ id }) => id));
  }

  /**
   * Makes a network namespace in the guest.
   * @returns Its path there, for an OCI spec.
   * @throws LcowError ALREADY_EXISTS (hcsshim ErrNetNSAlreadyAttached), or what the guest says.
   */
  async addNetNS(id: string): Promise<string> {
    if (this.#namespaces.has(id))
      throw new LcowError('ALREADY_EXISTS', `The network namespace ${id} is in the utility VM already.`);
    this.#namespaces.set(id, 'adding');
    try {
      const path = await this.#guest.addNamespace(id);
      this.#namespaces.set(id, { path, adapters: new Map() });
      return path;
    } catch (error) {
      this.#namespaces.delete(id);
      throw error;
    }
  }

  /**
   * Moves adapters into a namespace and configures them, as eth0, eth1, … Endpoints in it already are skipped. What was
   * done before a failure stays, for {@link removeNetNS}.
   * @throws LcowError NOT_FOUND (hcsshim ErrNetNSNotFound), NOT_SUPPORTED for an endpoint the VM was not started with,
   * IN_USE for one in another namespace, or what the guest says.
   */
  async addEndpointsToNS(id: string, endpoints: readonly NetworkEndpoint[]): Promise<void> {
    const namespace = this.#find(id);
    for (const endpoint of endpoints) {
      if (namespace.adapters.has(endpoint.id)) continue;
      if (!this.#present.has(endpoint.id))
        throw new LcowError(
          'NOT_SUPPORTED',
          `The endpoint ${endpoint.id} is no adapter of the utility VM; adapters are given when it is made.`,
        );
      for (const [other, entry] of this.#namespaces)
        if (entry !== 'adding' && entry.adapters.has(endpoint.id))
          throw new LcowError('IN_USE', `The endpoint ${endpoint.id} is in the network namespace ${other}.`);
      const interfaceName = freeName(namespace);
      namespace.adapters.set(endpoint.id, interfaceName);
      try {
        await this.#guest.addAdapter(id, endpoint, interfaceName);
      } catch (error) {
        namespace.adapters.delete(endpoint.id);
        throw error;
      }
    }
  }

  /** Takes adapters out of a namespace; those not in it are ignored. @throws LcowError NOT_FOUND, or what the guest says. */
  async removeEndpointsFromNS(id: string, endpoints: readonly Pick<NetworkEndpoint, 'id'>[]): Promise<void> {
    const namespace = this.#find(id);
    for (const endpoint of endpoints) {
      if (!namespace.adapters.has(endpoint.id)) continue;
      await this.#guest.removeAdapter(id, endpoint.id);
      namespace.adapters.delete(endpoint.id);
    }
  }

  /** Removes a namespace, its adapters first; one that is not there is fine. A failure can be tried again. @throws What the guest says. */
  async removeNetNS(id: string): Promise<void> {
    const namespace = this.#namespaces.get(id);
    if (!namespace || namespace === 'adding') return;
    await this.removeEndpointsFromNS(
      id,
      [...namespace.adapters.keys()].map((endpoint) => ({ id: endpoint })),
    );
    await this.#guest.removeNamespace(id);
    this.#namespaces.delete(id);
  }

  #find(id: string): Namespace {
    const namespace = this.#namespaces.get(id);
    if (!namespace || namespace === 'adding')
      throw new LcowError('NOT_FOUND', `The network namespace ${id} is not in the utility VM.`);
    return namespace;
  }
}

function freeName(namespace: Namespace): string {
  const taken = new Set(namespace.adapters.values());
  let number = 0;
  while (taken.has(`eth${number}`)) number++;
  return `eth${number}`;
}
