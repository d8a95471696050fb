import { describe, expect, it } from 'vitest';
import type { ComputeSystemDocument } from '../schema/index.js';
import { buildArguments } from './arguments.js';
import { vmFolder } from './vm-folder.js';

const folder = vmFolder('/run/lcow', 'vm1', ['lcow.rpc', 'lcow.mux']);

function document(change: (vm: ComputeSystemDocument['VirtualMachine']) => void = () => {}): ComputeSystemDocument {
  const vm: ComputeSystemDocument['VirtualMachine'] = {
    Chipset: {
      LinuxKernelDirect: {
        KernelFilePath: '/g/vmlinux',
        InitRdPath: '/g/initrd.img',
        KernelCmdLine: 'console=ttyS0 a,b',
      },
    },
    ComputeTopology: { Memory: { SizeInMB: 1024 }, Processor: { Count: 2 } },
  };
  change(vm);
  return { SchemaVersion: { Major: 2, Minor: 1 }, VirtualMachine: vm };
}

const build = (value: ComputeSystemDocument, accelerator: 'tcg' | 'kvm' = 'tcg'): string[] =>
  buildArguments(value, { id: 'vm1', accelerator, folder, nodes: new Map() });

const BASE = [
  ...['-name', 'guest=lcow-vm1', '-nodefaults', '-no-user-config'],
  ...['-sandbox', 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'],
  ...['-display', 'none', '-S', '-action', 'reboot=shutdown,shutdown=poweroff,panic=exit-failure,watchdog=none'],
  ...['-machine', 'q35,memory-backend=ram,usb=off,smbus=off,sata=off,vmport=off,dump-guest-core=off'],
  ...['-accel', 'tcg,tb-size=128', '-cpu', 'max', '-smp', '2,sockets=1,cores=2,threads=1', '-m', 'size=1024M'],
  ...['-object', 'memory-backend-ram,id=ram,size=1024M,prealloc=off,reserve=on', '-rtc', 'base=utc,clock=host'],
  ...['-kernel', '/g/vmlinux', '-initrd', '/g/initrd.img', '-append', 'console=ttyS0 a,b'],
  ...['-chardev', 'socket,id=monitor,fd=3', '-mon', 'chardev=monitor,mode=control'],
  ...['-chardev', `socket,id=qmp,path=${folder.path}/qmp.sock,server=on,wait=off`, '-mon', 'chardev=qmp,mode=control'],
  ...[
    '-chardev',
    `socket,id=console,path=${folder.path}/console.sock,server=on,wait=off`,
    '-serial',
    'chardev:console',
  ],
  ...['-device', 'vmgenid,id=generation0,guid=auto', '-device', 'pvpanic-pci,id=panic0,bus=pcie.0,addr=0x4'],
  ...['-object', 'rng-builtin,id=entropy0', '-device', 'virtio-rng-pci,id=rng0,rng=entropy0,bus=pcie.0,addr=0x3'],
];

describe('the QEMU command line of a document', () => {
  it('has every device written out, and none that the document does not ask for', () => {
    expect(build(document())).toEqual(BASE);
  });

  it('has ports, controllers, disks and adapters at fixed addresses', () => {
    const attachment = { Path: '/l.vhd', Type: 'VirtualDisk', ReadOnly: true };
    const value = document((vm) => {
      vm.Devices = {
        VirtioSerial: { Ports: { 'lcow.rpc': {}, 'lcow.mux': {} } },
        Scsi: { '0': { Attachments: { '7': attachment } }, '3': {} },
        NetworkAdapters: {
          a: { MacAddress: '02-00-00-AA-00-01' },
          b: {
            MacAddress: '02:00:00:00:00:02',
            Backend: { Type: 'User', Network: '10.9.0.0/16', Gateway: '10.9.0.1', Dns: '10.9.0.3' },
          },
        },
      };
    });
    const node = {
      driver: 'raw',
      'node-name': 'disk0-7',
      'read-only': true,
      size: 4096,
      discard: 'ignore',
      file: { driver: 'file', filename: '/l.vhd', locking: 'off' },
    } as const;
    const args = buildArguments(value, { id: 'vm1', accelerator: 'tcg', folder, nodes: new Map([['disk0-7', node]]) });
    expect(args.slice(BASE.length)).toEqual([
      ...['-device', 'virtio-serial-pci,id=serial0,max_ports=3,bus=pcie.0,addr=0x2'],
      ...['-chardev', `socket,id=port0,path=${folder.path}/lcow.rpc.sock,server=on,wait=off`],
      ...['-device', 'virtserialport,id=serialport0,bus=serial0.0,nr=1,chardev=port0,name=lcow.rpc'],
      ...['-chardev', `socket,id=port1,path=${folder.path}/lcow.mux.sock,server=on,wait=off`],
      ...['-device', 'virtserialport,id=serialport1,bus=serial0.0,nr=2,chardev=port1,name=lcow.mux'],
      ...['-device', 'virtio-scsi-pci,id=scsi0,num_queues=1,bus=pcie.0,addr=0x8'],
      ...['-blockdev', JSON.stringify(node)],
      '-device',
      '{"driver":"scsi-hd","id":"disk0-7","bus":"scsi0.0","channel":0,"scsi-id":0,"lun":7,"drive":"disk0-7",' +
        '"serial":"lcow-0-7","vendor":"LCOW","product":"virtual disk"}',
      ...['-device', 'virtio-scsi-pci,id=scsi3,num_queues=1,bus=pcie.0,addr=0xb'],
      ...['-netdev', 'user,id=net0,net=10.0.2.0/24,ipv6=off,restrict=off'],
      ...['-device', 'virtio-net-pci,id=nic0,netdev=net0,mac=02:00:00:aa:00:01,romfile=,bus=pcie.0,addr=0x10'],
      ...['-netdev', 'user,id=net1,net=10.9.0.0/16,host=10.9.0.1,dns=10.9.0.3,ipv6=off,restrict=off'],
      ...['-device', 'virtio-net-pci,id=nic1,netdev=net1,mac=02:00:00:00:00:02,romfile=,bus=pcie.0,addr=0x11'],
    ]);
  });

  it.each([
    [{ AllowOvercommit: false }, 'prealloc=on,reserve=on'],
    [{ AllowOvercommit: true, EnableDeferredCommit: true }, 'prealloc=off,reserve=off'],
  ])('backs memory as the document says: %j', (memory, expected) => {
    const args = build(document((vm) => Object.assign(vm.ComputeTopology.Memory, memory)));
    expect(args).toContain(`memory-backend-ram,id=ram,size=1024M,${expected}`);
  });

  it('gives hardware accelerators no translation buffer', () => {
    expect(build(document(), 'kvm')).toContain('kvm');
  });

  it('keeps commas in paths from becoming options', () => {
    const odd = vmFolder('/run/a,b', 'vm1');
    const args = buildArguments(document(), { id: 'vm1', accelerator: 'tcg', folder: odd, nodes: new Map() });
    expect(args).toContain(`socket,id=qmp,path=${odd.path.replace('a,b', 'a,,b')}/qmp.sock,server=on,wait=off`);
  });
});

describe('the folder of a compute system', () => {
  it('is the same for the same id and another for another', () => {
    expect(vmFolder('/r', 'a').path).toBe(vmFolder('/r', 'a').path);
    expect(vmFolder('/r', 'a').path).not.toBe(vmFolder('/r', 'b').path);
  });

  it('is refused when a socket in it could not be made', () => {
    const fits = `/${'x'.repeat(107 - '/vm/0123456789ab/console.sock'.length - 1)}`;
    expect(() => vmFolder(fits, 'a')).not.toThrow();
    expect(() => vmFolder(`${fits}y`, 'a')).toThrow(/has 108 bytes, a unix socket may have 107/);
    expect(() => vmFolder(fits, 'a', ['longer-name'])).toThrow(/unix socket/);
  });
});
