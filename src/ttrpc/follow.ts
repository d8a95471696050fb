import type { Duplex } from 'node:stream';
import { TransportError } from './transport-error.js';

export interface Follower {
  /** The next bytes. Not called again after {@link Follower.over}. */
  chunk(bytes: Buffer): void;
  /** Reading is over, called once: undefined after a clean end, else why. */
  over(error: Error | undefined): void;
}

/**
 * Reads a connection from now on. An ended, failed or already destroyed connection is told too, so that no state of it
 * is missed by a late follower. The connection keeps an error listener for the rest of its life.
 * @returns Stops following.
 */
export function follow(duplex: Duplex, follower: Follower): () => void {
  const detach = (): void => {
    duplex.off('data', onData);
    duplex.off('end', onEnd);
    duplex.off('error', onError);
    duplex.off('close', onClose);
  };
  const over = (error: Error | undefined): void => {
    detach();
    follower.over(error);
  };
  const onData = (bytes: Buffer): void => follower.chunk(bytes);
  const onEnd = (): void => over(undefined);
  const onError = (error: Error): void => over(error);
  const onClose = (): void => over(new TransportError('closed', 'The connection was closed.'));
  duplex.on('error', ignore);
  if (duplex.destroyed) {
    process.nextTick(() => follower.over(duplex.errored ?? new TransportError('closed', 'The connection was closed.')));
    return ignore;
  }
  if (duplex.readableEnded) {
    process.nextTick(() => follower.over(undefined));
    return ignore;
  }
  duplex.on('data', onData);
  duplex.on('end', onEnd);
  duplex.on('error', onError);
  duplex.on('close', onClose);
  duplex.resume();
  return detach;
}

// How long a connection closed on this side waits for the other side to have read everything and close too.
const LINGER_MS = 1000;

/**
 * Closes a connection so that the peer gets every byte written before. Destroying it at once would lose them: a peer that
 * writes meanwhile fails with EPIPE before it has read them.
 */
export function closeGently(duplex: Duplex): void {
  const destroy = (): void => {
    clearTimeout(timer);
    duplex.destroy();
  };
  const timer = setTimeout(destroy, LINGER_MS).unref();
  duplex.on('error', destroy);
  duplex.once('end', destroy);
  duplex.once('close', destroy);
  duplex.resume();
  duplex.end();
  if (duplex.readableEnded && duplex.writableFinished) destroy();
}

function ignore(): void {}
