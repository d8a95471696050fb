/** State on this host: where files live, how they are written whole, who may write them, and which process is alive. */
export { stateFolders, type StateFolders } from './folders.js';
export {
  writeFileAtomic,
  createAtomic,
  createFolderAtomic,
  syncFolder,
  isTemporaryName,
  sweepTemporary,
  asIoError,
} from './atomic.js';
export { checkSocketPath } from './socket-path.js';
export { withLock, tryLock, type Lock } from './lock.js';
export { ownIdentity, identityOf, isAlive, type ProcessIdentity } from './process-identity.js';
