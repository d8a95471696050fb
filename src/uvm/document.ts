import { join } from 'node:path';
import type { ComputeSystemDocument } from '../hcs/index.js';
import { INITRD_FILE, KERNEL_FILE } from './guest-image.js';
import type { ResolvedOptions } from './options.js';

/** Ports to the guest agent (docs/protocol.md). */
export const RPC_PORT = 'lcow.rpc';
export const MUX_PORT = 'lcow.mux';

/**
 * Kernel options of every utility VM; each but the first two is there because it was measured to save boot time.
 * A panic resets at once, and a reset ends the VM.
 */
const KERNEL_OPTIONS = [
  'console=ttyS0',
  'panic=-1',
  'quiet',
  // Self-tests of the crypto code: 0.5 s.
  'cryptomgr.notests',
  // Kprobe self-test, compiled-in certificates, KDF self-test: 0.35 s together.
  'initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init',
  // Debian clears every page it hands out; the guest's memory is its own.
  'init_on_alloc=0',
  // Timer calibration can hang on emulated hardware.
  'no_timer_check',
  'apparmor=0',
  'lsm=landlock',
  'audit=0',
  '8250.nr_uarts=1',
  // Disks announce themselves when they are added; a scan of 256 targets per controller costs 0.2 to 0.5 s.
  'scsi_mod.scan=manual',
];

/** The kernel command line of a utility VM; the user's options come last, so that they win. */
export function kernelCommandLine({
  processorCount,
  kernelBootOptions,
}: Pick<ResolvedOptions, 'processorCount' | 'kernelBootOptions'>): string {
  return [...KERNEL_OPTIONS, `nr_cpus=${processorCount}`, kernelBootOptions].filter((part) => part !== '').join(' ');
}

/** The HCS document of a utility VM (hcsshim uvm.makeLCOWDoc). Pure. */
export function buildDocument(options: ResolvedOptions): ComputeSystemDocument {
  const controllers = Array.from({ length: options.scsiControllerCount }, (_, number) => [String(number), {}] as const);
  const adapters = options.networkAdapters.map(
    ({ id, macAddress, backend }) =>
      [id, { EndpointId: id, MacAddress: macAddress, ...(backend ? { Backend: { ...backend } } : {}) }] as const,
  );
  return {
    Owner: options.owner,
    SchemaVersion: { Major: 2, Minor: 1 },
    ShouldTerminateOnLastHandleClosed: !options.detached,
    VirtualMachine: {
      StopOnReset: true,
      Chipset: {
        LinuxKernelDirect: {
          KernelFilePath: join(options.bootFilesPath, KERNEL_FILE),
          InitRdPath: join(options.bootFilesPath, INITRD_FILE),
          KernelCmdLine: kernelCommandLine(options),
        },
      },
      ComputeTopology: {
        Memory: {
          SizeInMB: options.memorySizeInMB,
          AllowOvercommit: options.allowOvercommit,
          EnableDeferredCommit: options.enableDeferredCommit,
        },
        Processor: { Count: options.processorCount },
      },
      Devices: {
        Scsi: Object.fromEntries(controllers),
        NetworkAdapters: Object.fromEntries(adapters),
        VirtioSerial: { Ports: { [RPC_PORT]: {}, [MUX_PORT]: {} } },
        ...(options.consolePipe === undefined ? {} : { ComPorts: { '0': { NamedPipe: options.consolePipe } } }),
      },
    },
  };
}
