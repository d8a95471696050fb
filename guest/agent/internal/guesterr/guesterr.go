// Package guesterr is the agent's error type: what the host receives as GuestError in the details of a failed call.
package guesterr

import (
	"errors"
	"fmt"
	"syscall"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"lcow.dev/agent/internal/guestpb"
)

// Reason is short for the generated enumeration.
type Reason = guestpb.GuestError_Reason

// Error is a failure with a reason the host can act upon.
type Error struct {
	Reason Reason
	// What the failure is about: a path, a serial, an id.
	Subject string
	// Operation and explanation, in lower case, without the subject.
	Message string
	Cause   error
}

// New makes an error without a cause.
func New(reason Reason, subject, format string, args ...any) *Error {
	return &Error{Reason: reason, Subject: subject, Message: fmt.Sprintf(format, args...)}
}

// Wrap makes an error with a cause.
func Wrap(reason Reason, subject string, cause error, format string, args ...any) *Error {
	e := New(reason, subject, format, args...)
	e.Cause = cause
	return e
}

func (e *Error) Error() string {
	text := e.Message
	if e.Subject != "" {
		text = fmt.Sprintf("%s %q", text, e.Subject)
	}
	if e.Cause != nil {
		text += ": " + e.Cause.Error()
	}
	return text
}

func (e *Error) Unwrap() error { return e.Cause }

// ReasonOf is the reason of the first Error in the chain, REASON_UNSPECIFIED when there is none.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return guestpb.GuestError_REASON_UNSPECIFIED
}

// Status makes of any error the status that goes over the wire.
func Status(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	details := &guestpb.GuestError{}
	var e *Error
	if errors.As(err, &e) {
		details.Reason, details.Subject = e.Reason, e.Subject
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		details.Errno = int32(errno)
	}
	st, detailErr := status.New(code(details.Reason), err.Error()).WithDetails(details)
	if detailErr != nil {
		return status.Error(codes.Internal, err.Error())
	}
	return st.Err()
}

func code(reason Reason) codes.Code {
	switch reason {
	case guestpb.GuestError_NO_SUCH_CONTAINER, guestpb.GuestError_NO_SUCH_PROCESS, guestpb.GuestError_NO_SUCH_DISK,
		guestpb.GuestError_NO_SUCH_STREAM, guestpb.GuestError_NO_SUCH_INTERFACE, guestpb.GuestError_NO_SUCH_NAMESPACE,
		guestpb.GuestError_NO_SUCH_USER, guestpb.GuestError_NO_SUCH_FILE, guestpb.GuestError_COMMAND_NOT_FOUND:
		return codes.NotFound
	case guestpb.GuestError_ALREADY_EXISTS:
		return codes.AlreadyExists
	case guestpb.GuestError_WRONG_STATE:
		return codes.FailedPrecondition
	case guestpb.GuestError_COMMAND_NOT_EXECUTABLE, guestpb.GuestError_BAD_WORKING_DIRECTORY, guestpb.GuestError_PATH_ESCAPES:
		return codes.InvalidArgument
	case guestpb.GuestError_TOO_LARGE:
		return codes.ResourceExhausted
	case guestpb.GuestError_MOUNT_FAILED, guestpb.GuestError_RUNTIME_FAILED:
		return codes.Internal
	default:
		return codes.Unknown
	}
}

// Invalid is a request that can never succeed. It has no reason of its own in the contract.
func Invalid(format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, format, args...)
}
