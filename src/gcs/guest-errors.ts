import { LcowError, type ErrorCode } from '../errors/index.js';
import { TIMEOUTS } from '../lifetime/index.js';
import {
  errorDetail,
  printable,
  ResetCode,
  StatusCode,
  StreamResetError,
  TransportError,
  TtrpcError,
} from '../ttrpc/index.js';
import { GuestError_Reason as Reason, GuestErrorSchema } from './guest_pb.js';

/** Name of a reason the guest gives for a failure: `details.reason` of the LcowError made from it. */
export type GuestReason = keyof typeof Reason;

const CODE_OF_REASON: Readonly<Record<Reason, ErrorCode>> = {
  [Reason.REASON_UNSPECIFIED]: 'GUEST_FAILED',
  [Reason.NO_SUCH_CONTAINER]: 'CONTAINER_NOT_FOUND',
  [Reason.NO_SUCH_PROCESS]: 'NOT_FOUND',
  [Reason.NO_SUCH_DISK]: 'NOT_FOUND',
  // The host opens a stream before it names it: one of the two is wrong.
  [Reason.NO_SUCH_STREAM]: 'GUEST_PROTOCOL',
  [Reason.NO_SUCH_INTERFACE]: 'NOT_FOUND',
  [Reason.NO_SUCH_NAMESPACE]: 'NOT_FOUND',
  [Reason.NO_SUCH_USER]: 'NO_SUCH_USER',
  [Reason.ALREADY_EXISTS]: 'ALREADY_EXISTS',
  [Reason.COMMAND_NOT_FOUND]: 'COMMAND_NOT_FOUND',
  [Reason.COMMAND_NOT_EXECUTABLE]: 'COMMAND_NOT_EXECUTABLE',
  [Reason.BAD_WORKING_DIRECTORY]: 'INVALID_ARGUMENT',
  [Reason.WRONG_STATE]: 'INVALID_STATE',
  [Reason.MOUNT_FAILED]: 'GUEST_FAILED',
  [Reason.RUNTIME_FAILED]: 'GUEST_FAILED',
  [Reason.TOO_LARGE]: 'INVALID_ARGUMENT',
  [Reason.NO_SUCH_FILE]: 'NOT_FOUND',
  [Reason.PATH_ESCAPES]: 'INVALID_ARGUMENT',
};

const CODE_OF_STATUS: Readonly<Record<number, ErrorCode>> = {
  [StatusCode.UNIMPLEMENTED]: 'NOT_SUPPORTED',
  [StatusCode.INVALID_ARGUMENT]: 'INVALID_ARGUMENT',
};

/** The error of a request that the guest answered with a failed status. What the guest says is bounded and printable. */
export function fromStatus(method: string, error: TtrpcError): LcowError {
  if (error.code === StatusCode.DEADLINE_EXCEEDED)
    return new LcowError('TIMED_OUT', `The guest did not answer ${method} in time.`, {
      cause: error,
      hint: `Set ${TIMEOUTS.guestRequest.env} to a larger number of seconds.`,
    });
  const words = printable(error.message);
  const guestError = errorDetail(error, GuestErrorSchema);
  if (!guestError)
    return new LcowError(CODE_OF_STATUS[error.code] ?? 'GUEST_FAILED', `The guest failed ${method}: ${words}.`, {
      cause: error,
      details: { status: error.code },
    });
  const known = guestError.reason in CODE_OF_REASON ? guestError.reason : Reason.REASON_UNSPECIFIED;
  return new LcowError(CODE_OF_REASON[known], `The guest failed ${method}: ${words}.`, {
    cause: error,
    details: { reason: Reason[known], errno: guestError.errno, subject: printable(guestError.subject, 1024) },
  });
}

/** The error of a connection that is over: GUEST_PROTOCOL when the guest broke the protocol, else GUEST_UNREACHABLE. */
export function fromTransport(error: TransportError): LcowError {
  return error.kind === 'protocol'
    ? new LcowError('GUEST_PROTOCOL', `The connection to the guest was given up: ${error.message}`, { cause: error })
    : new LcowError('GUEST_UNREACHABLE', `The connection to the guest broke: ${error.message}`, { cause: error });
}

/** The error of a stream the guest reset: CLOSED when it wants no more of it, else GUEST_FAILED. */
export function fromReset(error: StreamResetError): LcowError {
  const code = error.resetCode === ResetCode.CANCELLED ? 'CLOSED' : 'GUEST_FAILED';
  return new LcowError(code, `The guest ended a stream. ${error.message}`, { cause: error });
}

/** Whether an error is the guest's, for one of these reasons. */
export function hasReason(error: unknown, ...reasons: GuestReason[]): boolean {
  return error instanceof LcowError && (reasons as unknown[]).includes(error.details['reason']);
}
