import { randomBytes, randomUUID } from 'node:crypto';
import { LcowError } from '../errors/index.js';

/** How packets of an endpoint reach the world: QEMU's user-mode network, which needs no rights on the host. */
export interface UserBackend {
  readonly Type: 'User';
  /** The network, in CIDR notation. */
  readonly Network: string;
}

/** One network interface of a container, and what is behind it (seed: hns.HNSEndpoint). */
export interface HNSEndpoint {
  /** GUID. */
  readonly id: string;
  /** Lower-case, separated by colons. */
  readonly macAddress: string;
  /** In CIDR notation. */
  readonly addresses: readonly string[];
  readonly gateway: string;
  /** Addresses of name servers. */
  readonly dns: readonly string[];
  /** Domains that are tried for names without a dot. */
  readonly dnsSearch: readonly string[];
  /** Hostname that the address stands for in /etc/hosts; none when undefined. */
  readonly hostname: string | undefined;
  readonly backend: UserBackend;
}

/** Options of {@link createNatEndpoint}. */
export interface NatEndpointOptions {
  hostname?: string;
  /** A locally administered unicast address; a random one when not given. */
  macAddress?: string;
  dnsSearch?: readonly string[];
}

// QEMU's built-in network (its manual, "Network options", -netdev user): gateway .2, name server .3, first guest .15.
// Every utility VM has one of its own, so the same addresses serve all of them.
const NAT = {
  network: '10.0.2.0/24',
  address: '10.0.2.15/24',
  gateway: '10.0.2.2',
  nameServer: '10.0.2.3',
} as const;

/**
 * An endpoint on the user-mode NAT network of a utility VM. Through the gateway's address it reaches the host's loopback
 * services, and through the host the internet.
 * @throws LcowError INVALID_ARGUMENT for a MAC address that is not a locally administered unicast one.
 */
export function createNatEndpoint(options: NatEndpointOptions = {}): HNSEndpoint {
  return {
    id: randomUUID(),
    macAddress: options.macAddress === undefined ? randomMacAddress() : checkedMacAddress(options.macAddress),
    addresses: [NAT.address],
    gateway: NAT.gateway,
    dns: [NAT.nameServer],
    dnsSearch: options.dnsSearch ?? [],
    hostname: options.hostname,
    backend: { Type: 'User', Network: NAT.network },
  };
}

/** A random locally administered unicast MAC address (IEEE 802, bit 1 of the first byte set, bit 0 clear). */
export function randomMacAddress(): string {
  const bytes = randomBytes(6);
  bytes[0] = (bytes[0]! & 0xfc) | 0x02;
  return [...bytes].map((byte) => byte.toString(16).padStart(2, '0')).join(':');
}

function checkedMacAddress(macAddress: string): string {
  const lower = macAddress.toLowerCase();
  if (!/^[0-9a-f][26ae](:[0-9a-f]{2}){5}$/.test(lower))
    throw new LcowError('INVALID_ARGUMENT', `${macAddress} is no locally administered unicast MAC address.`);
  return lower;
}
