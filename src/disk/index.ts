/** Disks: tar, ext4, VHD and VHDX, in user space. Streams and files in, streams and files out; knows no VM. */
export {
  readTar,
  writeTar,
  readableName,
  type TarEntry,
  type TarEntryType,
  type TarInput,
  type TarMember,
} from './tar/index.js';
export { openDiskFile } from './structure/index.js';
export { VHD_FOOTER_BYTES, encodeFixedVhdFooter, decodeVhdFooter, type VhdFooter } from './vhd/index.js';
export {
  VhdxWriter,
  readVhdx,
  openVhdx,
  repairVhdx,
  resizeVhdx,
  type VhdxFile,
  type VhdxDisk,
  type OpenVhdxOptions,
  type VhdxRepair,
  type VhdxResize,
  type VhdxWriterOptions,
  type VhdxWriterResult,
} from './vhdx/index.js';
export { checkDisk, type DiskCheck, type DiskFinding } from './check/index.js';
export { verifyVerity, type Verity, type VerityCheck } from './verity/index.js';
export {
  createScratch,
  DEFAULT_SCRATCH_BYTES,
  DEFAULT_SCRATCH_BLOCK_BYTES,
  type CreateScratchOptions,
} from './scratch/index.js';
export { copySparse, type SparseCopyResult } from './sparse/index.js';
export { vhdInfo, type VhdInfo, type FixedVhdInfo, type DynamicVhdInfo, type VhdxInfo } from './vhd-info/index.js';
export {
  tarToVhd,
  readFileChunks,
  convertDisk,
  type TarToVhdOptions,
  type TarToVhdResult,
  type ConvertDiskOptions,
  type ConvertDiskResult,
} from './convert/index.js';
export { formatBlankExt4, ext4Info, type BlankExt4Options, type BlockWriter, type Ext4Info } from './ext4/index.js';
export { openExt4, Ext4Reader, type Ext4Inode, type InodeKind, type WalkedEntry } from './ext4/reader/index.js';
export { openDisk, MemorySource, type BlockSource, type OpenDisk } from './source/index.js';
export { vhdToTar, type VhdToTarOptions } from './export/index.js';
export {
  openView,
  FileView,
  changes,
  diffSize,
  type Change,
  type ChangeKind,
  type ViewEntry,
  type ViewLayer,
} from './view/index.js';
