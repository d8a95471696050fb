import { randomUUID } from 'node:crypto';
import { basename } from 'node:path';
import { LcowError } from '../errors/index.js';
import type { Container } from '../gcs/index.js';
import { hostnameFile, hostsFile, resolvConf, type HNSEndpoint, type HostsEntry } from '../hns/index.js';
import { mountContainerLayers, newImageLayers } from '../layers/index.js';
import { Scope, throwIfAborted } from '../lifetime/index.js';
import type { UtilityVM } from '../uvm/index.js';
import { guestSpec, type NameFiles } from './guest-spec.js';
import { resolveMounts } from './mounts.js';
import { addNetworkToVm } from './network.js';
import { releaseResources, Resources } from './resources.js';
import type { Spec } from './spec.js';

/** What this room needs of a utility VM. */
export type HostingSystem = Pick<
  UtilityVM,
  | 'addSCSI'
  | 'addSCSIBatch'
  | 'combineLayers'
  | 'removeLayers'
  | 'addNetNS'
  | 'addEndpointsToNS'
  | 'removeNetNS'
  | 'createContainer'
  | 'guest'
>;

/** Options of {@link createContainer} (seed: CreateOptions). */
export interface CreateOptions {
  /** Letters, digits, "_", "-" and "."; a random GUID when not given. */
  id?: string;
  /** Who the container belongs to; the name of this program when not given. */
  owner?: string;
  /** Never changed. `windows.layerFolders` has the layers, top-most first, base next to last, scratch last. */
  spec: Spec;
  /** The utility VM in which the container is made. */
  hostingSystem: HostingSystem;
  /** Id of a network namespace; overrides the one of the spec. Without either the container has only a loopback. */
  networkNamespace?: string;
  /** As docker's --user, resolved against the container's own files; overrides the user of the spec. */
  user?: string;
  /** Which streams the init process has; stdout and, without a terminal, stderr when not given. */
  stdio?: { stdin?: boolean; stdout?: boolean; stderr?: boolean };
  /** First size of the terminal. */
  consoleSize?: { rows: number; columns: number };
  /** Further lines for /etc/hosts. */
  extraHosts?: readonly HostsEntry[];
  /**
   * For diagnosis: on failure everything stays as it is, and the caller calls releaseResources with what
   * `onResources` was given.
   */
  doNotReleaseResourcesOnFailure?: boolean;
  /** Called with what will hold the container's resources, before anything is acquired. */
  onResources?: (resources: Resources) => void;
  signal?: AbortSignal;
}

/** Where containers have their folders in the utility VM. */
const CONTAINERS_FOLDER = '/run/gcs/c';

const CONTAINER_ID = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$/;

/**
 * Creates a container in a utility VM; starting it is a separate call (seed: CreateContainer). The order is the seed's:
 * network, layers, mounts, specification, container.
 *
 * Where the seed returns resources beside an error, this releases them and throws; with
 * `doNotReleaseResourcesOnFailure` they are had through `onResources`.
 *
 * @throws LcowError INVALID_ARGUMENT, NOT_SUPPORTED (by name) for what is asked for; NOT_FOUND; what the utility VM and
 *   its guest say, e.g. COMMAND_NOT_FOUND, NO_SUCH_USER; CANCELLED.
 */
export async function createContainer(options: CreateOptions): Promise<{ container: Container; resources: Resources }> {
  const { hostingSystem: vm, spec, signal } = options;
  const id = options.id ?? randomUUID();
  if (!CONTAINER_ID.test(id)) throw new LcowError('INVALID_ARGUMENT', `${JSON.stringify(id)} is no container id.`);
  const resources = new Resources(`${CONTAINERS_FOLDER}/${id}`);
  options.onResources?.(resources);

  const undo = new Scope();
  undo.defer(() => releaseResources(resources, vm, true));
  try {
    throwIfAborted(signal);
    const netNS = networkNamespaceOf(options);
    const network = netNS === undefined ? undefined : await addNetworkToVm(netNS, resources, vm);
    throwIfAborted(signal);
    const rootfs = await mountLayers(spec, resources, vm);
    throwIfAborted(signal);
    const mounts = await resolveMounts(spec.mounts ?? [], resources, vm);
    throwIfAborted(signal);
    const nameFiles = await writeNameFiles(spec.hostname ?? '', network?.endpoints ?? [], options, resources, vm);
    const forGuest = guestSpec(spec, mounts, nameFiles, { rootfs, networkNamespace: network?.path });
    forGuest.annotations = {
      'dev.lcow.owner': options.owner ?? basename(process.argv[1] ?? 'lcow'),
      ...forGuest.annotations,
    };
    const terminal = forGuest.process?.terminal ?? false;
    const container = await vm.createContainer({
      id,
      spec: forGuest,
      stdio: options.stdio ?? { stdin: false, stdout: true, stderr: !terminal },
      ...(options.user === undefined ? {} : { user: options.user }),
      ...(options.consoleSize ? { consoleSize: options.consoleSize } : {}),
      ...(signal ? { signal } : {}),
    });
    return { container, resources };
  } catch (error) {
    if (options.doNotReleaseResourcesOnFailure) throw error;
    return await undo.undo(error);
  }
}

/** A container of a pod, as its annotation says, lives in the network of the pod's sandbox. */
function networkNamespaceOf({ networkNamespace, spec }: CreateOptions): string | undefined {
  if (spec.annotations?.['io.kubernetes.cri.container-type'] === 'container') return undefined;
  if (spec.windows?.network?.endpointList?.length)
    throw new LcowError(
      'NOT_SUPPORTED',
      'The specification of the container lists network endpoints; put them in a network namespace and give that.',
    );
  return networkNamespace ?? spec.windows?.network?.networkNamespace;
}

async function mountLayers(spec: Spec, resources: Resources, vm: HostingSystem): Promise<string> {
  const layerFolders = spec.windows?.layerFolders ?? [];
  if (layerFolders.length === 0)
    throw spec.root?.path
      ? new LcowError(
          'NOT_SUPPORTED',
          `A root file system from a folder (${spec.root.path}) is not offered; give layers.`,
        )
      : new LcowError('INVALID_ARGUMENT', 'The specification of the container has neither layers nor a root path.');
  const rootfs = await mountContainerLayers(layerFolders, resources.containerRootInUVM, vm);
  resources.layers = newImageLayers(vm, resources.containerRootInUVM, layerFolders);
  return rootfs;
}

async function writeNameFiles(
  hostname: string,
  endpoints: readonly HNSEndpoint[],
  { extraHosts, signal }: CreateOptions,
  resources: Resources,
  vm: HostingSystem,
): Promise<NameFiles> {
  const root = resources.containerRootInUVM;
  const files: [destination: string, path: string, text: string][] = [
    ['/etc/hostname', `${root}/hostname`, hostnameFile(hostname)],
    ['/etc/hosts', `${root}/hosts`, hostsFile(hostname, endpoints, extraHosts)],
    ['/etc/resolv.conf', `${root}/resolv.conf`, resolvConf(endpoints)],
  ];
  for (const [, path, text] of files)
    await vm.guest.client.writeFile(
      { path, content: Buffer.from(text), mode: 0o644, makeParents: true },
      signal ? { signal } : {},
    );
  return Object.fromEntries(files.map(([destination, path]) => [destination, path]));
}
