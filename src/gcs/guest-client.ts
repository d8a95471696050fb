import type { DescMessage, MessageInitShape, MessageShape } from '@bufbuild/protobuf';
import { LcowError } from '../errors/index.js';
import { timeoutMs } from '../lifetime/index.js';
import {
  serviceClient,
  TransportError,
  TtrpcError,
  type CallOptions,
  type Caller,
  type ServiceClient,
} from '../ttrpc/index.js';
import { Guest } from './guest_pb.js';
import { fromStatus } from './guest-errors.js';
import { checkReply } from './replies.js';

/**
 * The calls of proto/guest.proto. Each is under the `guestRequest` time-out, or the one given, except WaitProcess, which
 * has none. All throw LcowError: what the guest says by the reason it gives, `details` holding {reason, errno, subject};
 * GUEST_PROTOCOL for a reply out of bounds; TIMED_OUT; CANCELLED; GUEST_UNREACHABLE.
 */
export type GuestClient = ServiceClient<typeof Guest>;

/** @param connectionFailed Told of a connection that is over, gives the error for everybody who waits. */
export function guestClient(caller: Caller, connectionFailed: (error: TransportError) => LcowError): GuestClient {
  const call = async <I extends DescMessage, O extends DescMessage>(
    service: string,
    method: string,
    input: I,
    output: O,
    request: MessageInitShape<I>,
    options: CallOptions = {},
  ): Promise<MessageShape<O>> => {
    const unlimited = method === Guest.method.waitProcess.name;
    const limit = options.timeoutMs ?? (unlimited ? undefined : timeoutMs('guestRequest'));
    try {
      const reply = await caller.call(service, method, input, output, request, { ...options, timeoutMs: limit });
      checkReply(method, reply);
      return reply;
    } catch (error) {
      if (error instanceof TtrpcError) throw fromStatus(method, error);
      if (error instanceof TransportError) throw connectionFailed(error);
      throw error;
    }
  };
  return serviceClient(Guest, { call });
}
