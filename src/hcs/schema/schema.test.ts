import { describe, expect, it } from 'vitest';
import { LcowError } from '../../errors/index.js';
import { KNOWN_FIELDS } from './known-fields.js';
import { parseModification, scsiResourcePath, scsiSerial, validateDocument } from './index.js';

function minimal(): Record<string, unknown> {
  return {
    SchemaVersion: { Major: 2, Minor: 1 },
    VirtualMachine: {
      Chipset: { LinuxKernelDirect: { KernelFilePath: '/k', InitRdPath: '/i', KernelCmdLine: 'quiet' } },
      ComputeTopology: { Memory: { SizeInMB: 256 }, Processor: { Count: 1 } },
    },
  };
}

/** The minimal document with a value put at a path, objects on the way made. */
function withField(path: string, value: unknown): unknown {
  const document = minimal();
  let object = document;
  const parts = path.split('.');
  for (const part of parts.slice(0, -1)) object = (object[part] ??= {}) as Record<string, unknown>;
  object[parts.at(-1)!] = value;
  return document;
}

function refusal(run: () => unknown): LcowError {
  try {
    run();
  } catch (error) {
    if (error instanceof LcowError) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

const disk = { Path: '/d.vhd', Type: 'VirtualDisk' };

describe('a compute system document', () => {
  it('is taken with only what a machine needs, and with all that can be honoured', () => {
    expect(validateDocument(minimal())).toEqual(minimal());
    const full = withField('VirtualMachine.Devices', {
      Scsi: { '0': { Attachments: { '63': { ...disk, ReadOnly: true } } }, '3': {} },
      NetworkAdapters: {
        a: { EndpointId: 'e', MacAddress: '02-00-00-00-00-01', Backend: { Type: 'User', Network: '10.1.0.0/24' } },
      },
      ComPorts: { '0': { NamedPipe: '/run/console.sock' } },
      VirtioSerial: { Ports: { 'lcow.rpc': {} } },
    });
    expect(validateDocument(full)).toEqual(full);
  });

  it.each([
    ['Bogus', 1, 'Bogus'],
    ['VirtualMachine.Chipset.LinuxKernelDirect.Bogus', 1, 'VirtualMachine.Chipset.LinuxKernelDirect.Bogus'],
    [
      'VirtualMachine.Devices',
      { Scsi: { '0': { Attachments: { '1': { ...disk, Bogus: 1 } } } } },
      'VirtualMachine.Devices.Scsi.0.Attachments.1.Bogus',
    ],
    ['VirtualMachine.Devices', { Scsi: { '4': {} } }, 'VirtualMachine.Devices.Scsi.4'],
    [
      'VirtualMachine.Devices',
      { Scsi: { '0': { Attachments: { '64': disk } } } },
      'VirtualMachine.Devices.Scsi.0.Attachments.64',
    ],
    [
      'VirtualMachine.Devices',
      { Scsi: { '0': { Attachments: { '01': disk } } } },
      'VirtualMachine.Devices.Scsi.0.Attachments.01',
    ],
    ['VirtualMachine.ComputeTopology.Memory.SizeInMB', 63, 'VirtualMachine.ComputeTopology.Memory.SizeInMB'],
    ['VirtualMachine.ComputeTopology.Memory.SizeInMB', 256.5, 'VirtualMachine.ComputeTopology.Memory.SizeInMB'],
    ['SchemaVersion', { Major: 1, Minor: 0 }, 'SchemaVersion.Major'],
    [
      'VirtualMachine.Devices',
      { NetworkAdapters: { a: { MacAddress: '01-00-00-00-00-01' } } },
      'VirtualMachine.Devices.NetworkAdapters.a.MacAddress',
    ],
    [
      'VirtualMachine.Devices',
      { VirtioSerial: { Ports: { 'a,b': {} } } },
      'VirtualMachine.Devices.VirtioSerial.Ports.a,b',
    ],
    [
      'VirtualMachine.Chipset.LinuxKernelDirect.KernelCmdLine',
      'x'.repeat(2048),
      'VirtualMachine.Chipset.LinuxKernelDirect.KernelCmdLine',
    ],
  ])('names an unknown or malformed field: %s = %j', (path, value, field) => {
    const error = refusal(() => validateDocument(withField(path, value)));
    expect(error.code).toBe('INVALID_ARGUMENT');
    expect(error.details['field']).toBe(field);
    expect(error.message).toContain(field);
  });

  it.each(
    Object.entries(KNOWN_FIELDS).flatMap(([pattern, names]) =>
      names.map((name) => [pattern === '' ? name : `${pattern}.${name}`] as const),
    ),
  )('refuses what HCS has and QEMU cannot honour by its name: %s', (pattern) => {
    const parts = pattern.split('.');
    let document: unknown;
    if (pattern.includes('Attachments'))
      document = withField('VirtualMachine.Devices', {
        Scsi: { '0': { Attachments: { '0': { ...disk, [parts.at(-1)!]: true } } } },
      });
    else if (pattern.includes('NetworkAdapters'))
      document = withField('VirtualMachine.Devices', {
        NetworkAdapters: { '0': { MacAddress: '02-00-00-00-00-01', [parts.at(-1)!]: true } },
      });
    else if (pattern.endsWith('OptimizeForDebugger'))
      document = withField('VirtualMachine.Devices', {
        ComPorts: { '0': { NamedPipe: '/c', OptimizeForDebugger: true } },
      });
    else document = withField(pattern, pattern.includes('ComPorts') ? { NamedPipe: '/c' } : {});
    const error = refusal(() => validateDocument(document));
    expect(error.code).toBe('NOT_SUPPORTED');
    expect(error.details['field']).toBe(pattern.replaceAll('*', '0'));
  });

  it.each([
    ['VirtualMachine.StopOnReset', false],
    ['VirtualMachine.ComputeTopology.Memory.EnableColdDiscardHint', true],
    ['VirtualMachine.Devices.Scsi', { '0': { Attachments: { '0': { Path: '/d', Type: 'PassThru' } } } }],
  ])('refuses a value QEMU cannot honour: %s = %j', (path, value) => {
    expect(refusal(() => validateDocument(withField(path, value))).code).toBe('NOT_SUPPORTED');
  });

  it('tells a mistake before what is merely unsupported', () => {
    const document = withField('VirtualMachine.StorageQoS', {}) as { Bogus?: number };
    document.Bogus = 1;
    expect(refusal(() => validateDocument(document)).details['field']).toBe('Bogus');
  });

  it('has no deferred commit without overcommit', () => {
    const document = withField('VirtualMachine.ComputeTopology.Memory', {
      SizeInMB: 256,
      AllowOvercommit: false,
      EnableDeferredCommit: true,
    });
    expect(refusal(() => validateDocument(document)).code).toBe('INVALID_ARGUMENT');
  });
});

describe('a modify request', () => {
  it('adds and removes a disk of a slot', () => {
    const ResourcePath = scsiResourcePath(3, 63);
    expect(parseModification({ RequestType: 'Add', ResourcePath, Settings: disk })).toEqual({
      kind: 'addDisk',
      controller: 3,
      lun: 63,
      attachment: disk,
    });
    expect(parseModification({ RequestType: 'Remove', ResourcePath })).toEqual({
      kind: 'removeDisk',
      controller: 3,
      lun: 63,
    });
  });

  it.each([
    [{ RequestType: 'Remove', ResourcePath: scsiResourcePath(4, 0) }, 'INVALID_ARGUMENT'],
    [{ RequestType: 'Remove', ResourcePath: scsiResourcePath(0, 64) }, 'INVALID_ARGUMENT'],
    [{ RequestType: 'Remove', ResourcePath: 'VirtualMachine/Devices/Floppy/0' }, 'INVALID_ARGUMENT'],
    [{ RequestType: 'Move', ResourcePath: scsiResourcePath(0, 0) }, 'INVALID_ARGUMENT'],
    [{ RequestType: 'Add', ResourcePath: scsiResourcePath(0, 0) }, 'INVALID_ARGUMENT'],
    [
      { RequestType: 'Add', ResourcePath: scsiResourcePath(0, 0), Settings: { ...disk, Type: 'PassThru' } },
      'NOT_SUPPORTED',
    ],
    [
      { RequestType: 'Add', ResourcePath: scsiResourcePath(0, 0), Settings: { ...disk, CachingMode: 'x' } },
      'NOT_SUPPORTED',
    ],
    [{ RequestType: 'Update', ResourcePath: scsiResourcePath(0, 0), Settings: disk }, 'NOT_SUPPORTED'],
    [
      { RequestType: 'Update', ResourcePath: 'VirtualMachine/ComputeTopology/Memory/SizeInMB', Settings: 512 },
      'NOT_SUPPORTED',
    ],
    [{ RequestType: 'Add', ResourcePath: 'VirtualMachine/Devices/NetworkAdapters/a', Settings: {} }, 'NOT_SUPPORTED'],
  ])('is refused when it cannot be done: %j', (request, code) => {
    expect(refusal(() => parseModification(request)).code).toBe(code);
  });
});

it('names the disk of each slot by a serial of its own', () => {
  expect(scsiSerial(2, 17)).toBe('lcow-2-17');
});
