/** Containers from OCI specifications (seed: internal/hcsoci): their creation in a utility VM and what they hold there. */
export { createContainer, type CreateOptions, type HostingSystem } from './create.js';
export { Resources, releaseResources } from './resources.js';
export { getNamespaceEndpoints } from './network.js';
export { defaultLinuxSpec, containerEnv, type DefaultSpecOptions } from './default-spec.js';
export type { Spec, Mount, Linux, LinuxNamespace, LinuxResources, Windows } from './spec.js';
// The seed exports these from here as well.
export { mountContainerLayers, unmountContainerLayers, UnmountOperation } from '../layers/index.js';
