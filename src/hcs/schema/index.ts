/** The documents of the compute service: HCS schema 2.1, the LCOW part, and how they are checked. */
export {
  SCSI_CONTROLLERS,
  SCSI_LUNS,
  NETWORK_ADAPTERS,
  scsiSerial,
  type ComputeSystemDocument,
  type Attachment,
  type NetworkAdapter,
  type NetworkBackend,
} from './document.js';
export { validateDocument } from './validate.js';
export { parseModification, scsiResourcePath, type ModifySettingRequest, type Modification } from './modify.js';
