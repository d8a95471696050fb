import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { LcowError } from '../errors/index.js';
import type { Container, CreateContainerOptions } from '../gcs/index.js';
import { addNamespaceEndpoint, createNamespace, createNatEndpoint } from '../hns/index.js';
import type { ScsiAttachment } from '../uvm/index.js';
import {
  createContainer,
  defaultLinuxSpec,
  releaseResources,
  type HostingSystem,
  type Resources,
  type Spec,
} from './index.js';

/** A utility VM that keeps account of what is in it and can fail at any step. */
class AccountingVm {
  readonly log: string[] = [];
  readonly disks = new Map<string, string>();
  readonly namespaces = new Map<string, string[]>();
  readonly files = new Map<string, string>();
  readonly rootfs = new Set<string>();
  created: CreateContainerOptions | undefined;
  failAt: string | undefined;

  step(step: string): void {
    if (this.failAt === step) throw new LcowError('GUEST_FAILED', `${step} failed.`);
    this.log.push(step);
  }
  attach(step: string, hostPath: string, uvmPath: string | undefined): ScsiAttachment {
    const path = uvmPath ?? `/run/mounts/scsi/m${this.disks.size}`;
    this.disks.set(path, hostPath);
    return {
      hostPath,
      uvmPath: path,
      readOnly: false,
      controller: 0,
      lun: this.disks.size,
      release: async () => {
        this.step(`release ${step}`);
        this.disks.delete(path);
      },
    };
  }

  get system(): HostingSystem {
    return {
      addSCSI: async (hostPath, { uvmPath }) => {
        this.step('disk');
        return this.attach('disk', hostPath, uvmPath);
      },
      addSCSIBatch: async (disks) => {
        this.step('layers');
        return disks.map(({ hostPath, uvmPath }) => this.attach('layer', hostPath, uvmPath));
      },
      combineLayers: async (_layers, _scratch, rootfs) => {
        this.step('combine');
        this.rootfs.add(rootfs);
      },
      removeLayers: async (rootfs) => {
        this.step('separate');
        this.rootfs.delete(rootfs);
      },
      addNetNS: async (id) => {
        this.step('namespace');
        this.namespaces.set(id, []);
        return `/run/netns/${id}`;
      },
      addEndpointsToNS: async (id, endpoints) => {
        this.step('endpoints');
        this.namespaces.get(id)!.push(...endpoints.map((endpoint) => endpoint.id));
      },
      removeNetNS: async (id) => {
        this.step('remove namespace');
        this.namespaces.delete(id);
      },
      createContainer: async (options) => {
        this.step('create');
        this.created = options;
        return { id: options.id } as Container;
      },
      guest: {
        client: {
          writeFile: async ({ path, content }: { path: string; content: Uint8Array }) => {
            this.step('name files');
            this.files.set(path, Buffer.from(content).toString());
          },
        },
      } as unknown as HostingSystem['guest'],
    };
  }

  get empty(): boolean {
    return this.disks.size + this.namespaces.size + this.rootfs.size === 0;
  }
}

let root: string;
let scratch: string;
let vm: AccountingVm;
let system: HostingSystem;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), 'lcow-hcsoci-'));
  scratch = join(root, 'scratch');
  await mkdir(scratch);
  await writeFile(join(scratch, 'sandbox.vhdx'), '');
});
afterAll(async () => {
  await rm(root, { recursive: true });
});
beforeEach(() => {
  vm = new AccountingVm();
  system = vm.system;
});

function specOf(changes: Partial<Spec> = {}): Spec {
  return {
    ...defaultLinuxSpec({ args: ['sh'], hostname: 'web' }),
    windows: { layerFolders: ['/l/top', '/l/base', scratch] },
    ...changes,
  };
}

function namespaceWithEndpoint(): string {
  const namespace = createNamespace();
  addNamespaceEndpoint(namespace, createNatEndpoint({ hostname: 'web' }));
  return namespace;
}

/** The specification that reached the guest. */
const sent = (): Spec => vm.created!.spec;

describe('createContainer', () => {
  it('makes network, layers and name files, then the container', async () => {
    const networkNamespace = namespaceWithEndpoint();
    const { container, resources } = await createContainer({
      id: 'one',
      spec: specOf(),
      hostingSystem: system,
      networkNamespace,
    });
    expect(container.id).toBe('one');
    expect(vm.log).toEqual([
      'namespace',
      'endpoints',
      'layers',
      'combine',
      'name files',
      'name files',
      'name files',
      'create',
    ]);
    expect(resources.netNS()).toBe(networkNamespace);
    expect(sent().root).toEqual({ path: '/run/gcs/c/one/rootfs', readonly: false });
    expect(sent().linux!.namespaces).toContainEqual({ type: 'network', path: `/run/netns/${networkNamespace}` });
    expect(sent().linux!.namespaces!.filter(({ type }) => type === 'network')).toHaveLength(1);
  });

  it('gives the container files with its names and mounts them over /etc', async () => {
    const networkNamespace = namespaceWithEndpoint();
    await createContainer({
      id: 'one',
      spec: specOf(),
      hostingSystem: system,
      networkNamespace,
      extraHosts: [{ address: '192.0.2.1', names: ['db'] }],
    });
    expect(vm.files.get('/run/gcs/c/one/hostname')).toBe('web\n');
    expect(vm.files.get('/run/gcs/c/one/resolv.conf')).toBe('nameserver 10.0.2.3\n');
    expect(vm.files.get('/run/gcs/c/one/hosts')).toMatch(/^192.0.2.1\tdb\n10.0.2.2\t.*\n10.0.2.15\tweb\n$/m);
    expect(sent().mounts!.slice(-3)).toEqual(
      ['hostname', 'hosts', 'resolv.conf'].map((name) => ({
        destination: `/etc/${name}`,
        type: 'bind',
        source: `/run/gcs/c/one/${name}`,
        options: ['rbind', 'rprivate'],
      })),
    );
  });

  it('leaves a name file to a mount of the specification', async () => {
    const mount = { destination: '/etc/hosts', type: 'bind', source: 'uvm:///run/hosts', options: ['ro'] };
    await createContainer({ id: 'one', spec: specOf({ mounts: [mount] }), hostingSystem: system });
    expect(sent().mounts!.filter(({ destination }) => destination === '/etc/hosts')).toEqual([
      { ...mount, source: '/run/hosts' },
    ]);
  });

  it('never changes the specification it is given, and sends no Windows part', async () => {
    const spec = specOf({ mounts: [{ destination: '/data', type: 'virtual-disk', source: '/d/data.vhdx' }] });
    const before = structuredClone(spec);
    await createContainer({ spec, hostingSystem: system, networkNamespace: namespaceWithEndpoint() });
    expect(spec).toEqual(before);
    expect('windows' in sent()).toBe(false);
  });

  it('keeps limits that hcsshim dropped, and completes a quota', async () => {
    const spec = specOf();
    spec.linux!.cgroupsPath = '/docker/x';
    spec.linux!.resources = { pids: { limit: 5 }, cpu: { quota: 50_000 } };
    await createContainer({ spec, hostingSystem: system });
    expect(sent().linux!.resources).toEqual({ pids: { limit: 5 }, cpu: { quota: 50_000, period: 100_000 } });
    expect(sent().linux!.cgroupsPath).toBeUndefined();
  });

  it('passes user, streams and terminal on', async () => {
    const consoleSize = { rows: 24, columns: 80 };
    const spec = specOf();
    await createContainer({ spec, hostingSystem: system, user: '1:2', stdio: { stdin: true }, consoleSize });
    expect(vm.created).toMatchObject({ user: '1:2', stdio: { stdin: true }, consoleSize });
    spec.process!.terminal = true;
    await createContainer({ spec, hostingSystem: system });
    expect(vm.created).toMatchObject({ stdio: { stdin: false, stdout: true, stderr: false } });
  });

  it('has only a loopback without a network, and the sandbox’s network as a workload of a pod', async () => {
    const annotations = { 'io.kubernetes.cri.container-type': 'container' };
    await createContainer({ spec: specOf(), hostingSystem: system });
    await createContainer({
      spec: specOf({ annotations }),
      hostingSystem: system,
      networkNamespace: namespaceWithEndpoint(),
    });
    expect(vm.log).not.toContain('namespace');
    expect(sent().linux!.namespaces).toContainEqual({ type: 'network' });
  });

  it('attaches virtual disks and mounts them at their destination', async () => {
    const { resources } = await createContainer({
      id: 'one',
      spec: specOf({
        mounts: [{ destination: '/data', type: 'virtual-disk', source: '/d/data.vhdx', options: ['RO'] }],
      }),
      hostingSystem: system,
    });
    expect(vm.disks.get('/run/gcs/c/one/mounts/m0')).toBe('/d/data.vhdx');
    expect(sent().mounts![0]).toEqual({
      destination: '/data',
      type: 'none',
      source: '/run/gcs/c/one/mounts/m0',
      options: ['bind', 'RO'],
    });
    await releaseResources(resources, system, true);
    expect(vm.empty).toBe(true);
  });

  it.each<[string, Partial<Spec>, string]>([
    ['hooks', { hooks: { prestart: [{ path: '/bin/hook' }], poststop: [] } }, 'NOT_SUPPORTED'],
    ['host folders', { mounts: [{ destination: '/d', type: 'bind', source: '/home' }] }, 'NOT_SUPPORTED'],
    ['physical disks', { mounts: [{ destination: '/d', type: 'physical-disk', source: '/dev/sda' }] }, 'NOT_SUPPORTED'],
    ['mounts to nowhere', { mounts: [{ destination: '', type: 'tmpfs' }] }, 'INVALID_ARGUMENT'],
    ['mounts of nothing', { mounts: [{ destination: '/d', type: 'bind' }] }, 'INVALID_ARGUMENT'],
    ['a root folder', { windows: {}, root: { path: '/srv/root' } }, 'NOT_SUPPORTED'],
    ['no root at all', { windows: {} }, 'INVALID_ARGUMENT'],
    ['a scratch without layers', { windows: { layerFolders: ['/l/scratch'] } }, 'INVALID_ARGUMENT'],
    ['lists of endpoints', { windows: { network: { endpointList: ['e'] } } }, 'NOT_SUPPORTED'],
    ['an unknown namespace', { windows: { network: { networkNamespace: 'none' } } }, 'NOT_FOUND'],
  ])('refuses %s and leaves nothing behind', async (_what, changes, code) => {
    await expect(createContainer({ spec: specOf(changes), hostingSystem: system })).rejects.toMatchObject({ code });
    expect([vm.empty, vm.created]).toEqual([true, undefined]);
  });

  it.each(['', '../up', 'a/b', '.hidden', 'x'.repeat(129)])('refuses the id %j', async (id) => {
    await expect(createContainer({ id, spec: specOf(), hostingSystem: system })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
    });
  });

  it.each(['namespace', 'endpoints', 'layers', 'combine', 'disk', 'name files', 'create'])(
    'leaves nothing in the utility VM when the step "%s" fails',
    async (step) => {
      vm.failAt = step;
      const mounts = [{ destination: '/data', type: 'virtual-disk', source: '/d/data.vhdx' }];
      const options = { id: 'one', spec: specOf({ mounts }), hostingSystem: system };
      await expect(createContainer({ ...options, networkNamespace: namespaceWithEndpoint() })).rejects.toMatchObject({
        message: `${step} failed.`,
      });
      expect(vm.empty).toBe(true);
      vm.failAt = undefined;
      await createContainer({ ...options, networkNamespace: namespaceWithEndpoint() });
    },
  );

  it('keeps everything for diagnosis when asked to', async () => {
    vm.failAt = 'create';
    let resources: Resources | undefined;
    await expect(
      createContainer({
        spec: specOf(),
        hostingSystem: system,
        networkNamespace: namespaceWithEndpoint(),
        doNotReleaseResourcesOnFailure: true,
        onResources: (held) => (resources = held),
      }),
    ).rejects.toMatchObject({ code: 'GUEST_FAILED' });
    expect([vm.disks.size, vm.namespaces.size, vm.rootfs.size]).toEqual([3, 1, 1]);
    await releaseResources(resources!, system, true);
    expect(vm.empty).toBe(true);
  });

  it('acquires nothing when it is cancelled', async () => {
    await expect(
      createContainer({ spec: specOf(), hostingSystem: system, signal: AbortSignal.abort() }),
    ).rejects.toMatchObject({ code: 'CANCELLED' });
    expect(vm.log).toEqual([]);
  });
});

describe('releaseResources', () => {
  async function held(): Promise<Resources> {
    const { resources } = await createContainer({
      spec: specOf({ mounts: [{ destination: '/data', type: 'virtual-disk', source: '/d/data.vhdx' }] }),
      hostingSystem: system,
      networkNamespace: namespaceWithEndpoint(),
    });
    vm.log.length = 0;
    return resources;
  }

  it('releases network, disks, overlay, scratch and layers, once however often it is called', async () => {
    const resources = await held();
    await releaseResources(resources, system, true);
    expect(vm.log).toEqual([
      'remove namespace',
      'release disk',
      'separate',
      'release layer',
      'release layer',
      'release layer',
    ]);
    expect(vm.empty).toBe(true);
    await releaseResources(resources, system, true);
    expect(vm.log).toHaveLength(6);
  });

  it('only makes the scratch consistent when the utility VM is about to end', async () => {
    await releaseResources(await held(), system, false);
    expect(vm.log).toEqual(['separate', 'release layer']);
  });

  it('goes on after a failure, and finishes the rest when called again', async () => {
    const resources = await held();
    vm.failAt = 'remove namespace';
    await expect(releaseResources(resources, system, true)).rejects.toThrow('remove namespace failed.');
    expect([vm.disks.size, vm.rootfs.size, vm.namespaces.size]).toEqual([0, 0, 1]);
    vm.failAt = undefined;
    vm.log.length = 0;
    await releaseResources(resources, system, true);
    expect(vm.log).toEqual(['remove namespace']);
  });
});
