/**
 * Which kinds of mounts an unmount releases; flags that can be combined (seed: UnmountOperation). A caller whose utility
 * VM is about to end needs only SCSI: the scratch is then left consistent, and the rest ends with the VM.
 *
 * The layers of this engine are always on SCSI, where hcsshim tried virtual persistent memory first; the VPMEM flag
 * stands for them, so that the flags do what they did.
 */
export const UnmountOperation = {
  /** The scratch. */
  SCSI: 0x01,
  /** The shares of a Windows guest: there are none here. */
  VSMB: 0x02,
  /** The read-only layers. */
  VPMEM: 0x04,
  All: 0x07,
} as const;

/** A combination of the flags of {@link UnmountOperation}. */
export type UnmountOperation = number;
