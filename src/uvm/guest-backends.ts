/** What the managers of a utility VM ask of the host's compute system and of the guest agent. */
import { hasReason, type GuestConnection } from '../gcs/index.js';
import { scsiResourcePath, scsiSerial, type ComputeSystem } from '../hcs/index.js';
import { timeoutMs } from '../lifetime/index.js';
import type { NetworkGuest } from './network.js';
import type { DiskGuest, DiskHost } from './scsi-manager.js';

/** Disks of a compute system, by modify requests sent in one go. */
export function diskHost(system: ComputeSystem): DiskHost {
  return {
    attach: (disks, signal) =>
      system.modifyMany(
        disks.map(({ controller, lun, hostPath, readOnly }) => ({
          RequestType: 'Add',
          ResourcePath: scsiResourcePath(controller, lun),
          Settings: { Path: hostPath, Type: 'VirtualDisk', ReadOnly: readOnly },
        })),
        signal ? { signal } : {},
      ),
    detach: (slots) =>
      system.modifyMany(
        slots.map(({ controller, lun }) => ({
          RequestType: 'Remove',
          ResourcePath: scsiResourcePath(controller, lun),
        })),
      ),
  };
}

/** Disks in the guest, named by their serial numbers. */
export function diskGuest(guest: () => GuestConnection): DiskGuest {
  return {
    mount: async (mounts, signal) => {
      await guest().client.mountDisks(
        {
          mounts: mounts.map(({ controller, lun, uvmPath, readOnly }) => ({
            serial: scsiSerial(controller, lun),
            target: uvmPath,
            readOnly,
          })),
          timeoutMs: timeoutMs('deviceAppears'),
        },
        signal ? { signal } : {},
      );
    },
    unmount: async (unmounts) => {
      try {
        await unmountAll(guest(), unmounts);
      } catch (error) {
        // A disk the guest never saw, or has ejected by itself, needs no ejecting. Which one of many it was is found out
        // one by one.
        if (unmounts.length === 1 && hasReason(error, 'NO_SUCH_DISK')) return;
        if (unmounts.length === 1 || unmounts.some(({ uvmPath }) => uvmPath !== undefined)) throw error;
        for (const unmount of unmounts)
          await unmountAll(guest(), [unmount]).catch((failure: unknown) => {
            if (!hasReason(failure, 'NO_SUCH_DISK')) throw failure;
          });
      }
    },
  };
}

async function unmountAll(guest: GuestConnection, unmounts: Parameters<DiskGuest['unmount']>[0]): Promise<void> {
  await guest.client.unmountDisks({
    unmounts: unmounts.map(({ controller, lun, uvmPath, eject }) => ({
      serial: scsiSerial(controller, lun),
      target: uvmPath ?? '',
      eject,
    })),
  });
}

/** Networks in the guest. */
export function networkGuest(guest: () => GuestConnection): NetworkGuest {
  return {
    addNamespace: async (namespaceId) => (await guest().client.addNetworkNamespace({ namespaceId })).path,
    removeNamespace: async (namespaceId) => {
      await guest().client.removeNetworkNamespace({ namespaceId });
    },
    addAdapter: async (namespaceId, endpoint, interfaceName) => {
      await guest().client.addNetworkAdapter({
        namespaceId,
        adapterId: endpoint.id,
        macAddress: endpoint.macAddress.replaceAll('-', ':').toLowerCase(),
        interfaceName,
        addresses: [...(endpoint.addresses ?? [])],
        gateways: endpoint.gateway === undefined ? [] : [endpoint.gateway],
        mtu: endpoint.mtu ?? 0,
      });
    },
    removeAdapter: async (namespaceId, adapterId) => {
      await guest().client.removeNetworkAdapter({ namespaceId, adapterId });
    },
  };
}
