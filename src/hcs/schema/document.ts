/**
 * The LCOW part of HCS schema 2.1: the document a compute system is made from, with HCS' own JSON names
 * (hcsshim internal/hcs/schema2). What is ours and not Microsoft's says so: `VirtioSerial` and `NetworkAdapter.Backend`.
 */
import { z } from 'zod';

/** Controllers and LUNs of LCOW: 4 controllers of 64 LUNs each (hcsshim uvm.MaxSCSIControllers). */
export const SCSI_CONTROLLERS = 4;
export const SCSI_LUNS = 64;
/** Network adapters of one compute system: they are PCI functions planned at start. */
export const NETWORK_ADAPTERS = 8;

/** A value HCS knows and this engine cannot honour; validation reports it as NOT_SUPPORTED. */
function only<const T extends boolean>(value: T, reason: string) {
  return z.boolean().check((context) => {
    if (context.value !== value)
      context.issues.push({ code: 'custom', input: context.value, message: reason, params: { notSupported: true } });
  });
}

const filePath = z
  .string()
  .min(1)
  .max(4095)
  .regex(/^[^\0]*$/, 'holds a NUL');

const LinuxKernelDirect = z.strictObject({
  /** Uncompressed kernel with a PVH note, or a bzImage. */
  KernelFilePath: filePath,
  InitRdPath: filePath,
  /** At most 2047 bytes: the kernel's COMMAND_LINE_SIZE on x86. */
  KernelCmdLine: z.string().max(2047),
});

const Memory = z.strictObject({
  /** MiB, at least 64. */
  SizeInMB: z.int().min(64).max(1_048_576),
  /** true (default): pages are found when the guest touches them; false: all of them before the guest starts. */
  AllowOvercommit: z.boolean().optional(),
  /** true: memory is not accounted against the host's commit limit up front. Needs AllowOvercommit. */
  EnableDeferredCommit: z.boolean().optional(),
  EnableHotHint: only(false, 'memory hints are not given to the guest').optional(),
  EnableColdHint: only(false, 'memory hints are not given to the guest').optional(),
  EnableColdDiscardHint: only(false, 'memory hints are not given to the guest').optional(),
});

const Processor = z.strictObject({
  Count: z.int().min(1).max(64),
});

/** One disk on a SCSI controller. */
export const Attachment = z.strictObject({
  /** A file of the host: fixed VHD or VHDX, told apart by content; a raw disk needs the ending `.raw`. */
  Path: filePath,
  Type: z.string().check((context) => {
    if (context.value === 'VirtualDisk') return;
    const known = ['Iso', 'PassThru', 'ExtensibleVirtualDisk'].includes(context.value);
    context.issues.push({
      code: 'custom',
      input: context.value,
      message: known ? `attachment type ${context.value} is not supported` : 'is not an attachment type',
      params: { notSupported: known },
    });
  }),
  ReadOnly: z.boolean().optional(),
});

const controllerKey = z.string().regex(/^[0-3]$/, `must be a controller number below ${SCSI_CONTROLLERS}`);
const lunKey = z.string().regex(/^([0-9]|[1-5][0-9]|6[0-3])$/, `must be a LUN below ${SCSI_LUNS}`);

const ScsiController = z.strictObject({ Attachments: z.record(lunKey, Attachment).optional() });

const ipv4 = z.ipv4();

/** Ours: how the host end of a network adapter is made. */
export const NetworkBackend = z.strictObject({
  /** QEMU's user-mode network stack (slirp): needs no rights on the host. */
  Type: z.literal('User'),
  /** IPv4 network in CIDR notation, default 10.0.2.0/24. The gateway is its address 2, the DNS forwarder its 3. */
  Network: z.cidrv4().optional(),
  /** Address at which the guest reaches the loopback services of the host. */
  Gateway: ipv4.optional(),
  /** Address of the DNS forwarder. */
  Dns: ipv4.optional(),
});

/** A network adapter, present from the start. */
export const NetworkAdapter = z.strictObject({
  /** Name of the HNS endpoint behind it; only reported. */
  EndpointId: z.string().max(256).optional(),
  /** As HCS has it (02-00-…) or with colons; not a multicast address. */
  MacAddress: z
    .string()
    .regex(
      /^[0-9a-fA-F][02468aceACE]([-:][0-9a-fA-F]{2}){5}$/,
      'must be a unicast MAC address such as 02-00-00-00-00-01',
    ),
  Backend: NetworkBackend.optional(),
});

const ComPort = z.strictObject({
  /** Path of a unix socket to make. Clients see the console from its kept beginning on and may type. */
  NamedPipe: filePath,
});

/** Ours: named byte channels to the guest, as unix sockets on the host. */
const VirtioSerial = z.strictObject({
  Ports: z.record(
    z.string().regex(/^[a-z][a-z0-9.-]{0,31}$/, 'must be a port name of lower-case letters, digits, dot and dash'),
    z.strictObject({}),
  ),
});

const Devices = z.strictObject({
  Scsi: z.record(controllerKey, ScsiController).optional(),
  NetworkAdapters: z.record(z.string().min(1).max(64), NetworkAdapter).optional(),
  ComPorts: z.record(z.string().regex(/^0$/, 'must be port 0'), ComPort).optional(),
  VirtioSerial: VirtioSerial.optional(),
});

const VirtualMachine = z.strictObject({
  /** A reset by the guest ends the compute system. The only thing this engine does. */
  StopOnReset: only(true, 'a guest that resets always stops').optional(),
  Chipset: z.strictObject({ LinuxKernelDirect }),
  ComputeTopology: z.strictObject({ Memory, Processor }),
  Devices: Devices.optional(),
});

/** schema2.ComputeSystem. */
export const ComputeSystemSchema = z.strictObject({
  Owner: z.string().max(256).optional(),
  SchemaVersion: z.strictObject({ Major: z.literal(2), Minor: z.literal(1) }),
  /** Whether closing the compute system, or the death of its owner, ends it. Default false, as in HCS. */
  ShouldTerminateOnLastHandleClosed: z.boolean().optional(),
  VirtualMachine,
});

export type ComputeSystemDocument = z.infer<typeof ComputeSystemSchema>;
export type Attachment = z.infer<typeof Attachment>;
export type NetworkAdapter = z.infer<typeof NetworkAdapter>;
export type NetworkBackend = z.infer<typeof NetworkBackend>;

/**
 * The serial number under which the guest finds the disk of a slot. Linux numbers disks in the order they answer, so
 * this is the only stable name.
 */
export function scsiSerial(controller: number, lun: number): string {
  return `lcow-${controller}-${lun}`;
}
