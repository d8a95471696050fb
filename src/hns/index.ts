/** Networks of containers: endpoints, namespaces, and the files that tell a container its names. */
export {
  createNatEndpoint,
  randomMacAddress,
  type HNSEndpoint,
  type NatEndpointOptions,
  type UserBackend,
} from './endpoint.js';
export {
  createNamespace,
  addNamespaceEndpoint,
  removeNamespaceEndpoint,
  listNamespaceEndpoints,
  listNamespaces,
  removeNamespace,
} from './namespace.js';
export { hostsFile, resolvConf, hostnameFile, type HostsEntry } from './name-files.js';
