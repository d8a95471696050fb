import type { Duplex } from 'node:stream';
import { errorMessage, LcowError } from '../errors/index.js';
import { abortable, throwIfAborted, withDeadline } from '../lifetime/index.js';
import { handshake, TransportError, type HandshakeOptions } from '../ttrpc/index.js';
import { GuestConnection, Session, type GuestCapabilities } from './guest-connection.js';
import { fromTransport } from './guest-errors.js';

/** Major version of proto/guest.proto that this host speaks. */
export const PROTOCOL_MAJOR = 1;

/** How the two ports of a utility VM are reached. Each is called once and gives a connection of its own. */
export interface GuestPorts {
  readonly connectRpc: (signal: AbortSignal) => Promise<Duplex>;
  readonly connectMux: (signal: AbortSignal) => Promise<Duplex>;
}

export interface ConnectGuestOptions {
  /** Gives up. */
  readonly signal?: AbortSignal | undefined;
  /** For the guest's log. */
  readonly hostVersion?: string | undefined;
  /** Times of the handshake, for tests. */
  readonly handshake?: Omit<HandshakeOptions, 'signal'>;
}

/**
 * Begins a session with the guest agent: connects both ports, shakes hands on each, says Hello. May be called while the
 * guest is still booting, and again after a session has broken. Under the `guestConnection` time-out.
 * @throws LcowError TIMED_OUT, CANCELLED; GUEST_UNREACHABLE when a port cannot be connected or hangs up; GUEST_PROTOCOL
 *   when the guest speaks another major version. Both connections are closed then.
 */
export async function connectGuest(ports: GuestPorts, options: ConnectGuestOptions = {}): Promise<GuestConnection> {
  return withDeadline('guestConnection', 'The connection to the guest agent', options.signal, async (signal) => {
    const [rpc, mux] = await openBoth(ports, options.handshake ?? {}, signal);
    const session = new Session(rpc, mux);
    try {
      return new GuestConnection(session, await greet(session, options.hostVersion ?? '', signal));
    } catch (error) {
      session.close();
      throw error;
    }
  });
}

async function greet(session: Session, hostVersion: string, signal: AbortSignal): Promise<GuestCapabilities> {
  const hello = await session.client.hello({ hostVersion }, { signal });
  if (hello.protocolMajor !== PROTOCOL_MAJOR)
    throw new LcowError(
      'GUEST_PROTOCOL',
      `The guest agent speaks version ${hello.protocolMajor}.${hello.protocolMinor} of the protocol; this host speaks version ${PROTOCOL_MAJOR}.`,
      { hint: 'Build the guest image of this version with npm run build:guest.' },
    );
  const { protocolMajor, protocolMinor, agentVersion, kernelRelease, runtimeVersion, bootId, uptimeNanos } = hello;
  const features = new Set(hello.features);
  return {
    protocolMajor,
    protocolMinor,
    agentVersion,
    kernelRelease,
    runtimeVersion,
    bootId,
    uptimeNanos,
    features,
  };
}

/** Both ports at once; the failure of one gives the other up. */
async function openBoth(
  ports: GuestPorts,
  times: Omit<HandshakeOptions, 'signal'>,
  signal: AbortSignal,
): Promise<[Duplex, Duplex]> {
  const other = new AbortController();
  const either = AbortSignal.any([signal, other.signal]);
  const open = async (name: string, connect: (signal: AbortSignal) => Promise<Duplex>): Promise<Duplex> => {
    try {
      return await openPort(name, connect, times, either);
    } catch (error) {
      // Why the first one failed is the reason; the second one is only told to stop.
      other.abort(error);
      throw error;
    }
  };
  const results = await Promise.allSettled([open('lcow.rpc', ports.connectRpc), open('lcow.mux', ports.connectMux)]);
  const [rpc, mux] = results;
  if (rpc.status === 'fulfilled' && mux.status === 'fulfilled') return [rpc.value, mux.value];
  for (const result of results) if (result.status === 'fulfilled') result.value.destroy();
  throwIfAborted(signal);
  throw other.signal.reason;
}

async function openPort(
  name: string,
  connect: (signal: AbortSignal) => Promise<Duplex>,
  times: Omit<HandshakeOptions, 'signal'>,
  signal: AbortSignal,
): Promise<Duplex> {
  throwIfAborted(signal);
  let port: Duplex | undefined;
  try {
    const connecting = connect(signal);
    port = await abortable(connecting, signal).catch((error: unknown) => {
      connecting.then(
        (late) => late.destroy(),
        () => {},
      );
      throw error;
    });
    return await handshake(port, 'host', { ...times, signal });
  } catch (error) {
    port?.destroy();
    throwIfAborted(signal);
    if (error instanceof TransportError) throw fromTransport(error);
    if (error instanceof LcowError) throw error;
    const message = `The port ${name} of the utility VM cannot be reached: ${errorMessage(error)}.`;
    throw new LcowError('GUEST_UNREACHABLE', message, { cause: error });
  }
}
