import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { LcowError } from '../../errors/index.js';

/** sockaddr_un.sun_path holds 108 bytes with its final NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

/** The private folder of one compute system, and the names in it. */
export interface VmFolder {
  readonly path: string;
  /** A second QMP monitor, for people with socat. */
  readonly qmpSocket: string;
  readonly consoleSocket: string;
  readonly ownerFile: string;
  /** Messages of a QEMU that outlives its owner. */
  readonly logFile: string;
  portSocket(name: string): string;
}

/** Folder that holds one folder per compute system. */
export function vmRoot(runtimeFolder: string): string {
  return join(runtimeFolder, 'vm');
}

/**
 * Names the folder of a compute system. Its name is short, for the sake of socket paths, and follows from the id.
 * @throws LcowError INVALID_ARGUMENT when a socket path would be longer than a unix socket may have.
 */
export function vmFolder(runtimeFolder: string, id: string, ports: readonly string[] = []): VmFolder {
  const path = join(vmRoot(runtimeFolder), createHash('sha256').update(id).digest('hex').slice(0, 12));
  const folder: VmFolder = {
    path,
    qmpSocket: join(path, 'qmp.sock'),
    consoleSocket: join(path, 'console.sock'),
    ownerFile: join(path, 'owner.json'),
    logFile: join(path, 'qemu.log'),
    portSocket: (name) => join(path, `${name}.sock`),
  };
  for (const socket of [folder.qmpSocket, folder.consoleSocket, ...ports.map((name) => folder.portSocket(name))])
    checkSocketPath(socket);
  return folder;
}

/** @throws LcowError INVALID_ARGUMENT when the path is too long for a unix socket. */
export function checkSocketPath(path: string): void {
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_SOCKET_PATH_BYTES)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `The socket path ${path} has ${bytes} bytes, a unix socket may have ${MAX_SOCKET_PATH_BYTES}.`,
      { hint: 'Set LCOW_RUNTIME_DIR to a folder with a shorter path.' },
    );
}
