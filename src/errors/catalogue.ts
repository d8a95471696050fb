export interface CatalogueEntry {
  /** What the code means, for docs/errors.md. */
  readonly meaning: string;
  /** What a user can do, when that is the same for every occurrence. */
  readonly hint?: string;
  /** HTTP status in the Docker Engine API; 500 when absent. */
  readonly httpStatus?: number;
}

function catalogue<const T extends Record<string, CatalogueEntry>>(
  entries: T,
): { readonly [K in keyof T]: CatalogueEntry } {
  return entries;
}

/** Every error code of the project. docs/errors.md lists the same codes; a test compares the two. */
export const CATALOGUE = catalogue({
  INVALID_ARGUMENT: { meaning: 'An option or argument is missing, unknown or out of range.', httpStatus: 400 },
  INVALID_STATE: { meaning: 'The operation does not fit the current state of its object.', httpStatus: 409 },
  NOT_SUPPORTED: {
    meaning: 'A field or operation exists in the contract but this engine cannot honour it.',
    httpStatus: 501,
  },
  ALREADY_EXISTS: { meaning: 'The name or id is taken.', httpStatus: 409 },
  NOT_FOUND: { meaning: 'A file, layer, image, container or process of that name does not exist.', httpStatus: 404 },
  IN_USE: { meaning: 'The object cannot be removed or replaced because something uses it.', httpStatus: 409 },
  CANCELLED: { meaning: 'The caller aborted the operation.' },
  TIMED_OUT: { meaning: 'The operation did not finish in its time; see docs/timeouts.md for names and overrides.' },
  CLOSED: { meaning: 'The object was already closed.' },
  IO_FAILED: { meaning: 'The operating system refused or failed a file or socket operation.' },
  DISK_FULL: {
    meaning: 'No space is left on a device of the host.',
    hint: 'Free space on the disk that holds the data folder (lcow doctor shows it) and try again.',
  },
  LOCK_HELD: { meaning: 'Another live process holds the lock.' },
  BAD_TAR: { meaning: 'A tar stream is damaged, cut off or uses what cannot be represented.' },
  BAD_EXT4: { meaning: 'An ext4 image is damaged or uses an unsupported feature.' },
  BAD_VHD: { meaning: 'A VHD file is damaged or of an unsupported kind.' },
  BAD_VHDX: { meaning: 'A VHDX file is damaged or of an unsupported kind.' },
  BAD_REFERENCE: { meaning: 'An image reference is not well formed.', httpStatus: 400 },
  BAD_MANIFEST: { meaning: 'A manifest, index or image configuration is not well formed.' },
  DIGEST_MISMATCH: {
    meaning: 'Content does not have the digest or size it was asked for by.',
    hint: 'The registry or archive holds damaged content; try again or use another source.',
  },
  IMAGE_NOT_FOUND: { meaning: 'No such image here or in the registry.', httpStatus: 404 },
  NO_MATCHING_PLATFORM: { meaning: 'The image has no manifest for the wanted platform.', httpStatus: 404 },
  REGISTRY_UNREACHABLE: { meaning: 'The registry could not be reached or broke the connection.' },
  REGISTRY_DENIED: { meaning: 'The registry refused the credentials or their absence.', httpStatus: 403 },
  REGISTRY_FAILED: { meaning: 'The registry answered with an error or outside the protocol.' },
  QEMU_MISSING: {
    meaning: 'No usable qemu-system binary was found.',
    hint: 'Install QEMU (Debian: apt-get install qemu-system-x86) or set LCOW_QEMU to its path; lcow doctor shows what is missing.',
  },
  QEMU_FAILED: { meaning: 'QEMU refused its arguments, a command, or ended unexpectedly.' },
  NO_ACCELERATOR: {
    meaning: 'No accelerator, not even emulation, could run a guest.',
    hint: 'Run lcow doctor for the verdict on each accelerator.',
  },
  GUEST_IMAGE_MISSING: {
    meaning: 'The kernel or initrd of the utility VM is not there.',
    hint: 'Build it with npm run build:guest, or set LCOW_GUEST_IMAGE to a folder with vmlinux and initrd.img.',
  },
  GUEST_PANIC: { meaning: 'The kernel of the utility VM panicked.' },
  GUEST_UNREACHABLE: { meaning: 'The guest agent does not answer or the connection to it broke.' },
  GUEST_FAILED: { meaning: 'The guest agent refused or failed a request.' },
  GUEST_PROTOCOL: { meaning: 'The guest sent what the protocol does not allow.' },
  VM_EXITED: { meaning: 'The utility VM ended while it was needed.' },
  NO_AVAILABLE_LOCATION: { meaning: 'No SCSI slot is free (hcsshim ErrNoAvailableLocation).' },
  NOT_ATTACHED: { meaning: 'The disk is not attached to the utility VM (hcsshim ErrNotAttached).' },
  ALREADY_RELEASED: { meaning: 'A handle was released twice.' },
  BAD_RECORD: { meaning: 'What is stored about a container is damaged.' },
  CONTAINER_NOT_FOUND: { meaning: 'No such container.', httpStatus: 404 },
  CONTAINER_NOT_RUNNING: { meaning: 'The container is not running.', httpStatus: 409 },
  COMMAND_NOT_FOUND: {
    meaning: 'The executable of a process does not exist in the container: exit code 127.',
    httpStatus: 400,
  },
  COMMAND_NOT_EXECUTABLE: { meaning: 'The executable of a process cannot be run: exit code 126.', httpStatus: 400 },
  PROCESS_FAILED: { meaning: 'A process ended with an exit code other than 0.' },
  NO_SUCH_USER: { meaning: 'The user or group of a process does not exist in the container.', httpStatus: 400 },
});

export type ErrorCode = keyof typeof CATALOGUE;

/** Whether a text that another process sent is a code of the catalogue. */
export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(CATALOGUE, text);
}
