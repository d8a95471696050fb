import { createHash } from 'node:crypto';
import { join } from 'node:path';
import { checkSocketPath } from '../../state/index.js';

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
