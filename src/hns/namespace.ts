import { randomUUID } from 'node:crypto';
import { LcowError } from '../errors/index.js';
import type { HNSEndpoint } from './endpoint.js';

// Networks of user-mode NAT live inside the QEMU of one utility VM, so what describes them lives as long as the process
// that owns the VM.
const namespaces = new Map<string, Map<string, HNSEndpoint>>();

/** Makes an empty network namespace and returns its id, a GUID (hcsshim internal/hns CreateNamespace). */
export function createNamespace(): string {
  const id = randomUUID();
  namespaces.set(id, new Map());
  return id;
}

/**
 * Puts an endpoint into a namespace.
 * @throws LcowError NOT_FOUND; ALREADY_EXISTS when it is in the namespace.
 */
export function addNamespaceEndpoint(namespaceId: string, endpoint: HNSEndpoint): void {
  const endpoints = find(namespaceId);
  if (endpoints.has(endpoint.id))
    throw new LcowError('ALREADY_EXISTS', `Endpoint ${endpoint.id} is in network namespace ${namespaceId} already.`);
  endpoints.set(endpoint.id, endpoint);
}

/** Takes an endpoint out of a namespace; one that is not there, or a namespace that is not, is fine (as in the seed). */
export function removeNamespaceEndpoint(namespaceId: string, endpointId: string): void {
  namespaces.get(namespaceId)?.delete(endpointId);
}

/**
 * The endpoints of a namespace in the order in which they were added.
 * @throws LcowError NOT_FOUND
 */
export function listNamespaceEndpoints(namespaceId: string): HNSEndpoint[] {
  return [...find(namespaceId).values()];
}

/** The ids of all namespaces. */
export function listNamespaces(): string[] {
  return [...namespaces.keys()];
}

/** Removes a namespace and what is in it; one that does not exist is fine. */
export function removeNamespace(namespaceId: string): void {
  namespaces.delete(namespaceId);
}

function find(namespaceId: string): Map<string, HNSEndpoint> {
  const endpoints = namespaces.get(namespaceId);
  if (!endpoints) throw new LcowError('NOT_FOUND', `There is no network namespace ${namespaceId}.`);
  return endpoints;
}
