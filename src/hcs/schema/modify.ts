import { z } from 'zod';
import { LcowError } from '../../errors/index.js';
import { Attachment, SCSI_CONTROLLERS, SCSI_LUNS } from './document.js';
import { validate } from './validate.js';

/** schema2.ModifySettingRequest: changes a running compute system. */
export const ModifySettingSchema = z.strictObject({
  RequestType: z.enum(['Add', 'Remove', 'Update']),
  /** Path of the setting in the document, parts joined by `/`: `VirtualMachine/Devices/Scsi/0/Attachments/3`. */
  ResourcePath: z.string().max(512),
  Settings: z.unknown().optional(),
});

export type ModifySettingRequest = z.infer<typeof ModifySettingSchema>;

/** A modify request, understood. */
export type Modification =
  | { readonly kind: 'addDisk'; readonly controller: number; readonly lun: number; readonly attachment: Attachment }
  | { readonly kind: 'removeDisk'; readonly controller: number; readonly lun: number };

const ATTACHMENT = /^VirtualMachine\/Devices\/Scsi\/(\d{1,3})\/Attachments\/(\d{1,3})$/;
// Settings hcsshim changes at run time and this engine does not.
const KNOWN_PATHS = [
  /^VirtualMachine\/ComputeTopology\/(Memory\/SizeInMB|Processor|Processor\/CpuGroup)$/,
  /^VirtualMachine\/Devices\/(NetworkAdapters|VirtualSmb|Plan9|VirtualPMem|VirtualPci|MappedPipes|HvSocket|FlexibleIov)(\/.+)?$/,
  /^VirtualMachine\/StorageQoS$/,
];

/** The resource path of a SCSI attachment (hcsshim resourcepaths.SCSIResourceFormat). */
export function scsiResourcePath(controller: number, lun: number): string {
  return `VirtualMachine/Devices/Scsi/${controller}/Attachments/${lun}`;
}

/**
 * Reads a modify request.
 * @throws LcowError INVALID_ARGUMENT for a malformed request or unknown path, NOT_SUPPORTED for one HCS would honour.
 */
export function parseModification(value: unknown): Modification {
  const request = validate<ModifySettingRequest>(ModifySettingSchema, value, 'Modify request');
  const path = request.ResourcePath;
  const match = ATTACHMENT.exec(path);
  if (!match) {
    if (KNOWN_PATHS.some((known) => known.test(path)))
      throw new LcowError('NOT_SUPPORTED', `Modify request: ${path} cannot be changed while the QEMU engine runs.`, {
        details: { field: path },
      });
    throw new LcowError('INVALID_ARGUMENT', `Modify request: the resource path ${path} is unknown.`, {
      details: { field: path },
    });
  }
  const controller = Number(match[1]);
  const lun = Number(match[2]);
  if (controller >= SCSI_CONTROLLERS || lun >= SCSI_LUNS)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `Modify request: ${path} is outside ${SCSI_CONTROLLERS} × ${SCSI_LUNS} slots.`,
      {
        details: { field: path },
      },
    );
  switch (request.RequestType) {
    case 'Add': {
      const prefix = ['VirtualMachine', 'Devices', 'Scsi', String(controller), 'Attachments', String(lun)];
      const attachment = validate<Attachment>(Attachment, request.Settings, 'Modify request', prefix);
      return { kind: 'addDisk', controller, lun, attachment };
    }
    case 'Remove':
      return { kind: 'removeDisk', controller, lun };
    case 'Update':
      throw new LcowError('NOT_SUPPORTED', `Modify request: ${path} can be added and removed, not updated.`, {
        details: { field: path },
      });
  }
}
