import type { HNSEndpoint } from './endpoint.js';

/** Names by which a container reaches the host: docker's, and our own. */
const GATEWAY_NAMES = ['host.docker.internal', 'host.lcow.internal'] as const;

// As docker writes them (libnetwork etchosts).
const LOCAL_HOSTS = [
  ['127.0.0.1', 'localhost'],
  ['::1', 'localhost ip6-localhost ip6-loopback'],
  ['fe00::', 'ip6-localnet'],
  ['ff00::', 'ip6-mcastprefix'],
  ['ff02::1', 'ip6-allnodes'],
  ['ff02::2', 'ip6-allrouters'],
] as const;

/** One line of /etc/hosts. */
export interface HostsEntry {
  readonly address: string;
  readonly names: readonly string[];
}

/**
 * The text of a container's /etc/hosts: the local names, what the caller adds, the host by the names of its gateway,
 * and the container's own name at each of its addresses.
 */
export function hostsFile(
  hostname: string,
  endpoints: readonly HNSEndpoint[],
  extra: readonly HostsEntry[] = [],
): string {
  const lines: string[] = LOCAL_HOSTS.map(([address, names]) => `${address}\t${names}`);
  for (const { address, names } of extra) lines.push(`${address}\t${names.join(' ')}`);
  const [first] = endpoints;
  if (first) lines.push(`${first.gateway}\t${GATEWAY_NAMES.join(' ')}`);
  for (const endpoint of endpoints) {
    const name = endpoint.hostname ?? hostname;
    if (name) for (const address of endpoint.addresses) lines.push(`${address.replace(/\/.*$/, '')}\t${name}`);
  }
  return lines.map((line) => `${line}\n`).join('');
}

// resolv.conf(5): the resolver reads three name servers.
const MAXIMUM_NAME_SERVERS = 3;

/** The text of a container's /etc/resolv.conf: the name servers and search domains of all endpoints, each once. */
export function resolvConf(endpoints: readonly HNSEndpoint[]): string {
  const servers = [...new Set(endpoints.flatMap((endpoint) => endpoint.dns))].slice(0, MAXIMUM_NAME_SERVERS);
  const search = [...new Set(endpoints.flatMap((endpoint) => endpoint.dnsSearch))];
  const lines = servers.map((server) => `nameserver ${server}\n`);
  if (search.length > 0) lines.push(`search ${search.join(' ')}\n`);
  return lines.join('');
}

/** The text of a container's /etc/hostname. */
export function hostnameFile(hostname: string): string {
  return `${hostname}\n`;
}
