// Package session begins sessions on a virtio-serial port: the nonce handshake of docs/protocol.md, section 1.
//
// A port stays open for the life of the agent while hosts come and go. The guest learns of a host's close and of the next
// open by messages that it may see together, and bytes of an earlier session may still be queued; so no byte counts before
// a nonce has gone both ways.
package session

import (
	"bytes"
	"errors"
	"io"
	"time"
)

// Port is a byte channel on which hosts come and go. Its Read answers io.EOF when the host hangs up.
type Port interface {
	io.ReadWriter
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	// WaitHost returns when a host is connected; with an error when the port is gone for good.
	WaitHost() error
	// SetBlocking has later writes return only when the device has taken the bytes. Not every port can.
	SetBlocking(bool) error
}

// Sizes and fields of a handshake message.
const (
	messageSize = 24
	kindOffset  = 4
	nonceOffset = 8
	nonceSize   = messageSize - nonceOffset
)

var magic = []byte("LCOW")

const (
	kindHello = "HELO"
	kindEcho  = "ECHO"
	kindStart = "STRT"
	kindReady = "REDY"
)

// replyLimit bounds the wait for a host that has stopped reading: it hung up or will begin again.
const replyLimit = time.Second

type nonce [nonceSize]byte

// Acceptor makes sessions of a port, one after another.
type Acceptor struct {
	port Port
	// Handshake bytes that the session before saw arrive in its midst.
	carried []byte
	current *Conn
}

// NewAcceptor makes an Acceptor; it owns the port's reads and writes from now on.
func NewAcceptor(port Port) *Acceptor { return &Acceptor{port: port} }

// Accept ends the session before, if it is still held, and waits for the next.
// It returns an error only when the port is gone for good.
func (a *Acceptor) Accept() (*Conn, error) {
	if a.current != nil {
		a.carried = a.current.finish()
		a.current = nil
	}
	window := a.carried
	a.carried = nil
	var latest *nonce
	buffer := make([]byte, 4096)
	for {
		var started bool
		var err error
		if window, started, err = a.consume(window, &latest); err != nil && !transient(err) {
			return nil, err
		}
		if started {
			a.current = newConn(a.port)
			return a.current, nil
		}
		n, err := a.port.Read(buffer)
		if n > 0 {
			window = append(window, buffer[:n]...)
			continue
		}
		if err == nil || transient(err) {
			continue
		}
		if !errors.Is(err, io.EOF) {
			return nil, err
		}
		window, latest = nil, nil
		if err := a.port.WaitHost(); err != nil {
			return nil, err
		}
	}
}

// consume answers every whole message in the window and returns what may be the beginning of another.
func (a *Acceptor) consume(window []byte, latest **nonce) (rest []byte, started bool, err error) {
	for {
		at := bytes.Index(window, magic)
		if at < 0 {
			// Keep what may be a cut magic.
			keep := min(len(window), len(magic)-1)
			return window[len(window)-keep:], false, err
		}
		window = window[at:]
		if len(window) < messageSize {
			return window, false, err
		}
		message := window[:messageSize]
		var n nonce
		copy(n[:], message[nonceOffset:])
		switch string(message[kindOffset:nonceOffset]) {
		case kindHello:
			*latest = &n
			err = a.reply(kindEcho, n)
			window = window[messageSize:]
		case kindStart:
			window = window[messageSize:]
			if *latest != nil && **latest == n {
				if err = a.reply(kindReady, n); err == nil {
					return nil, true, nil
				}
			}
		default:
			window = window[len(magic):]
		}
	}
}

func (a *Acceptor) reply(kind string, n nonce) error {
	message := make([]byte, 0, messageSize)
	message = append(message, magic...)
	message = append(message, kind...)
	message = append(message, n[:]...)
	if err := a.port.SetWriteDeadline(time.Now().Add(replyLimit)); err != nil {
		return err
	}
	_, err := a.port.Write(message)
	if resetErr := a.port.SetWriteDeadline(time.Time{}); err == nil {
		err = resetErr
	}
	return err
}

// transient tells whether an error ends a host's attempt, not the port.
func transient(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout()
}
