import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { validateDocument } from '../hcs/index.js';
import { buildDocument, kernelCommandLine } from './document.js';
import { guestImageFolder } from './guest-image.js';
import { resolveOptions, type UtilityVMOptions } from './options.js';

const folder = mkdtempSync(join(tmpdir(), 'lcow-options-'));
afterAll(() => rmSync(folder, { recursive: true }));
writeFileSync(join(folder, 'vmlinux'), '');
writeFileSync(join(folder, 'initrd.img'), '');

const options = (change: Partial<UtilityVMOptions> = {}): UtilityVMOptions => ({
  id: 'vm1',
  owner: 'test',
  bootFilesPath: folder,
  runtimeFolder: '/run/lcow',
  ...change,
});

describe('the options of a utility VM', () => {
  it('have the defaults of hcsshim', () => {
    expect(resolveOptions(options(), 'kvm', 8)).toEqual({
      id: 'vm1',
      owner: 'test',
      memorySizeInMB: 1024,
      allowOvercommit: true,
      enableDeferredCommit: false,
      processorCount: 2,
      bootFilesPath: folder,
      kernelBootOptions: '',
      scsiControllerCount: 4,
      networkAdapters: [],
      consolePipe: undefined,
      detached: false,
    });
    expect(resolveOptions({ bootFilesPath: folder, runtimeFolder: '/r' }, 'kvm', 8).id).toMatch(/^[0-9a-f-]{36}$/);
  });

  it('have one processor under emulation and on a host with one', () => {
    expect(resolveOptions(options(), 'tcg', 8).processorCount).toBe(1);
    expect(resolveOptions(options(), 'kvm', 1).processorCount).toBe(1);
    expect(resolveOptions(options({ processorCount: 3 }), 'tcg', 8).processorCount).toBe(3);
  });

  it('are corrected where hcsshim corrects: memory to an even number, processors to what the host has', () => {
    const told: string[] = [];
    const tell = (_: object, message: string): void => void told.push(message);
    const log = { debug: tell, info: tell, warn: tell };
    expect(resolveOptions(options({ memorySizeInMB: 255, processorCount: 99, log }), 'kvm', 4)).toMatchObject({
      memorySizeInMB: 256,
      processorCount: 4,
    });
    expect(told).toHaveLength(2);
  });

  it.each([
    { memorySizeInMB: 63 },
    { memorySizeInMB: 100.5 },
    { processorCount: 0 },
    { scsiControllerCount: 5 },
    { scsiControllerCount: -1 },
    { allowOvercommit: false, enableDeferredCommit: true },
    { memory: 1 },
  ])('are refused out of range or unknown: %j', (change) => {
    expect(() => resolveOptions(options(change), 'kvm', 8)).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });

  it('need the boot files', () => {
    expect(() => resolveOptions(options({ bootFilesPath: '/nonexistent' }), 'kvm')).toThrow(
      expect.objectContaining({ code: 'GUEST_IMAGE_MISSING' }),
    );
    expect(guestImageFolder({ LCOW_GUEST_IMAGE: folder })).toBe(folder);
    expect(() => guestImageFolder({ LCOW_GUEST_IMAGE: '/nonexistent' })).toThrow(/has no vmlinux/);
  });
});

describe('the document of a utility VM', () => {
  it('is written out in full', () => {
    const networkAdapters = [
      {
        id: 'e1',
        macAddress: '02:00:00:00:00:01',
        addresses: ['10.0.2.15/24'],
        backend: { Type: 'User', Network: '10.0.2.0/24' },
      },
    ] as const;
    const resolved = resolveOptions(options({ networkAdapters, consolePipe: '/run/c.sock' }), 'tcg', 2);
    expect(buildDocument(resolved)).toEqual({
      Owner: 'test',
      SchemaVersion: { Major: 2, Minor: 1 },
      ShouldTerminateOnLastHandleClosed: true,
      VirtualMachine: {
        StopOnReset: true,
        Chipset: {
          LinuxKernelDirect: {
            KernelFilePath: join(folder, 'vmlinux'),
            InitRdPath: join(folder, 'initrd.img'),
            KernelCmdLine: kernelCommandLine(resolved),
          },
        },
        ComputeTopology: {
          Memory: { SizeInMB: 1024, AllowOvercommit: true, EnableDeferredCommit: false },
          Processor: { Count: 1 },
        },
        Devices: {
          Scsi: { '0': {}, '1': {}, '2': {}, '3': {} },
          NetworkAdapters: {
            e1: {
              EndpointId: 'e1',
              MacAddress: '02:00:00:00:00:01',
              Backend: { Type: 'User', Network: '10.0.2.0/24' },
            },
          },
          VirtioSerial: { Ports: { 'lcow.rpc': {}, 'lcow.mux': {} } },
          ComPorts: { '0': { NamedPipe: '/run/c.sock' } },
        },
      },
    });
  });

  it.each([{}, { scsiControllerCount: 0 }, { detached: true }, { allowOvercommit: false }])(
    'is one the compute service takes: %j',
    (change) => {
      const document = buildDocument(resolveOptions(options(change), 'tcg', 2));
      expect(validateDocument(document)).toEqual(document);
    },
  );

  it('has a kernel that ends the VM when it panics, unless the user says otherwise', () => {
    const line = kernelCommandLine({ processorCount: 1, kernelBootOptions: 'panic=60 debug' });
    expect(line).toMatch(/^console=ttyS0 panic=-1 quiet .* nr_cpus=1 panic=60 debug$/);
    expect(kernelCommandLine({ processorCount: 2, kernelBootOptions: '' })).toMatch(/ nr_cpus=2$/);
  });
});
