// Package mux is the guest's side of the multiplexer of docs/protocol.md, section 3: byte streams with credit over one port.
//
// Credit is an acknowledgement here, not only flow control: a sender keeps what has not been credited, so that it can be
// sent again in another session.
package mux

import "encoding/binary"

// The frame header: stream id, type, payload length in three bytes; all big-endian.
const (
	headerSize = 8
	typeOffset = 4

	// MaxPayload is the longest payload of a frame.
	MaxPayload = 32768
	// Window is the credit that each direction of a stream begins with.
	Window = 262144
)

// Limits on the streams of a session; more are reset.
const (
	maxStreams = 1024
	maxPending = 256
)

type frameType byte

const (
	frameOpen   frameType = 1
	frameData   frameType = 2
	frameCredit frameType = 3
	frameEnd    frameType = 4
	frameReset  frameType = 5
)

// ResetCode says why a stream was reset.
type ResetCode uint32

// Codes of RESET.
const (
	ResetCancelled    ResetCode = 0
	ResetNoSuchStream ResetCode = 1
	ResetProtocol     ResetCode = 2
	ResetIO           ResetCode = 3
)

func putHeader(b []byte, id uint32, kind frameType, length int) {
	binary.BigEndian.PutUint32(b, id)
	binary.BigEndian.PutUint32(b[typeOffset:], uint32(kind)<<24|uint32(length))
}

func parseHeader(b []byte) (id uint32, kind frameType, length int) {
	word := binary.BigEndian.Uint32(b[typeOffset:])
	return binary.BigEndian.Uint32(b), frameType(word >> 24), int(word & 0xffffff)
}
