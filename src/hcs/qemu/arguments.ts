/**
 * The one place where a compute system document becomes a QEMU command line. Nothing is left to QEMU's defaults or to the
 * host's configuration: every device, its bus address and its back end are written out.
 */
import { LcowError } from '../../errors/index.js';
import type { ComputeSystemDocument, NetworkAdapter } from '../schema/index.js';
import type { Accelerator } from './verdict-cache.js';
import { diskDeviceId, type BlockNode } from './disk-image.js';
import { scsiDevice } from './scsi-disks.js';
import type { VmFolder } from './vm-folder.js';

/**
 * MiB of translated code QEMU keeps under TCG; its own default is 1024. 32 makes three containers in a row twice as slow,
 * their code is 42 MiB.
 */
const TRANSLATION_BUFFER_MB = 128;

/** Device numbers on the root bus of q35, fixed so that a machine looks the same at each start. */
const SLOT = { serial: 0x2, rng: 0x3, panic: 0x4, scsi: 0x8, network: 0x10 } as const;

/** Number of the file descriptor on which QEMU finds its owner's monitor. */
export const MONITOR_FD = 3;

/** What the command line needs beside the document. */
export interface ArgumentContext {
  /** Shown by ps. */
  readonly id: string;
  readonly accelerator: Accelerator;
  readonly folder: VmFolder;
  /** The block nodes of the document's own attachments, by device id. */
  readonly nodes: ReadonlyMap<string, BlockNode>;
}

/** QEMU reads device numbers as hexadecimal. */
const slot = (number: number): string => `0x${number.toString(16)}`;

/** `a=1,b=x,,y`: QEMU's option syntax, where a comma in a value is doubled. */
function options(first: string, values: Readonly<Record<string, string | number>>): string {
  const escaped = Object.entries(values).map(([key, value]) => `${key}=${String(value).replaceAll(',', ',,')}`);
  return [first, ...escaped].join(',');
}

/** Builds the arguments of qemu-system-x86_64. Pure: the same document and context give the same arguments. */
export function buildArguments(document: ComputeSystemDocument, context: ArgumentContext): string[] {
  const { Chipset, ComputeTopology, Devices = {} } = document.VirtualMachine;
  const boot = Chipset.LinuxKernelDirect;
  const { Memory, Processor } = ComputeTopology;
  const { folder } = context;
  const args: string[] = [];
  const add = (option: string, ...value: string[]): void => {
    args.push(option, ...value);
  };
  const socket = (id: string, path: string): void => {
    add('-chardev', options('socket', { id, path, server: 'on', wait: 'off' }));
  };

  add('-name', options(`guest=lcow-${context.id.replaceAll(',', ',,')}`, {}));
  add('-nodefaults');
  add('-no-user-config');
  // A second wall: QEMU may neither become another user, nor start programs, nor change its limits.
  add('-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny');
  add('-display', 'none');
  // Stopped until the owner has its monitor and console.
  add('-S');
  add('-action', 'reboot=shutdown,shutdown=poweroff,panic=exit-failure,watchdog=none');

  add('-machine', 'q35,memory-backend=ram,usb=off,smbus=off,sata=off,vmport=off,dump-guest-core=off');
  add('-accel', acceleratorOption(context.accelerator));
  add('-cpu', 'max');
  add('-smp', `${Processor.Count},sockets=1,cores=${Processor.Count},threads=1`);
  add('-m', `size=${Memory.SizeInMB}M`);
  add(
    '-object',
    options('memory-backend-ram', {
      id: 'ram',
      size: `${Memory.SizeInMB}M`,
      prealloc: Memory.AllowOvercommit === false ? 'on' : 'off',
      reserve: Memory.EnableDeferredCommit === true ? 'off' : 'on',
    }),
  );
  add('-rtc', 'base=utc,clock=host');

  add('-kernel', boot.KernelFilePath);
  add('-initrd', boot.InitRdPath);
  add('-append', boot.KernelCmdLine);

  add('-chardev', `socket,id=monitor,fd=${MONITOR_FD}`);
  add('-mon', 'chardev=monitor,mode=control');
  socket('qmp', folder.qmpSocket);
  add('-mon', 'chardev=qmp,mode=control');
  socket('console', folder.consoleSocket);
  add('-serial', 'chardev:console');

  add('-device', 'vmgenid,id=generation0,guid=auto');
  add('-device', `pvpanic-pci,id=panic0,bus=pcie.0,addr=${slot(SLOT.panic)}`);
  add('-object', 'rng-builtin,id=entropy0');
  add('-device', `virtio-rng-pci,id=rng0,rng=entropy0,bus=pcie.0,addr=${slot(SLOT.rng)}`);

  const ports = Object.keys(Devices.VirtioSerial?.Ports ?? {});
  if (ports.length > 0) {
    // Port 0 is kept for a console by the protocol.
    add('-device', `virtio-serial-pci,id=serial0,max_ports=${ports.length + 1},bus=pcie.0,addr=${slot(SLOT.serial)}`);
    ports.forEach((name, index) => {
      socket(`port${index}`, folder.portSocket(name));
      add(
        '-device',
        options('virtserialport', {
          id: `serialport${index}`,
          bus: 'serial0.0',
          nr: index + 1,
          chardev: `port${index}`,
          name,
        }),
      );
    });
  }

  const controllers = Object.entries(Devices.Scsi ?? {});
  for (const [key, controller] of controllers) {
    const number = Number(key);
    add('-device', `virtio-scsi-pci,id=scsi${number},num_queues=1,bus=pcie.0,addr=${slot(SLOT.scsi + number)}`);
    for (const lunKey of Object.keys(controller.Attachments ?? {})) {
      const lun = Number(lunKey);
      const node = context.nodes.get(diskDeviceId(number, lun));
      if (!node)
        throw new LcowError('INVALID_STATE', `The disk of controller ${number}, LUN ${lun} was not looked at.`);
      add('-blockdev', JSON.stringify(node));
      add('-device', JSON.stringify(scsiDevice(number, lun)));
    }
  }

  Object.values(Devices.NetworkAdapters ?? {}).forEach((adapter, index) => {
    add('-netdev', userNetwork(index, adapter));
    add(
      '-device',
      options('virtio-net-pci', {
        id: `nic${index}`,
        netdev: `net${index}`,
        mac: adapter.MacAddress.replaceAll('-', ':').toLowerCase(),
        // No boot ROM: the machine never boots from the network, and the ROM file need not be installed.
        romfile: '',
        bus: 'pcie.0',
        addr: slot(SLOT.network + index),
      }),
    );
  });
  return args;
}

function acceleratorOption(accelerator: Accelerator): string {
  return accelerator === 'tcg' ? `tcg,tb-size=${TRANSLATION_BUFFER_MB}` : accelerator;
}

function userNetwork(index: number, adapter: NetworkAdapter): string {
  const { Network = '10.0.2.0/24', Gateway, Dns } = adapter.Backend ?? {};
  return options('user', {
    id: `net${index}`,
    net: Network,
    ...(Gateway === undefined ? {} : { host: Gateway }),
    ...(Dns === undefined ? {} : { dns: Dns }),
    ipv6: 'off',
    restrict: 'off',
  });
}
