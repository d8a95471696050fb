import { LcowError } from '../errors/index.js';

/** sockaddr_un.sun_path holds 108 bytes with its final NUL. */
const MAX_SOCKET_PATH_BYTES = 107;

/**
 * Checks what the system calls would answer with a misleading error.
 * @throws LcowError INVALID_ARGUMENT when the path is too long for a unix socket.
 */
export function checkSocketPath(path: string): void {
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_SOCKET_PATH_BYTES)
    throw new LcowError(
      'INVALID_ARGUMENT',
      `The socket path ${path} has ${bytes} bytes, a unix socket may have ${MAX_SOCKET_PATH_BYTES}.`,
      { hint: 'Set LCOW_RUNTIME_DIR to a folder with a shorter path.' },
    );
}
