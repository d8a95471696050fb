package session

import (
	"bytes"
	"io"
	"net"
	"sync"
	"time"
)

// Conn is one session: the bytes between REDY and the host's hang-up. It is a net.Conn for the ttrpc server.
type Conn struct {
	port Port
	done chan struct{}
	once sync.Once

	readMu sync.Mutex
	// The read before this one, when it was a HELO: see sawHello.
	hello []byte

	writeMu sync.Mutex
	drain   bool
	drained chan struct{}
}

func newConn(port Port) *Conn {
	return &Conn{port: port, done: make(chan struct{}), drained: make(chan struct{})}
}

// Done is closed when the session is over.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Read reads the session's bytes; io.EOF when the host has hung up, or another has begun, or Close was called.
func (c *Conn) Read(b []byte) (int, error) {
	c.readMu.Lock()
	defer c.readMu.Unlock()
	select {
	case <-c.done:
		return 0, io.EOF
	default:
	}
	n, err := c.port.Read(b)
	if n > 0 && c.sawHello(b[:n]) {
		c.Close()
		return 0, io.EOF
	}
	if n > 0 {
		return n, nil
	}
	if err != nil {
		// A writer that waits for a host that is gone would otherwise wait until the next one comes, and write to it.
		c.Close()
		return 0, io.EOF
	}
	return 0, nil
}

// sawHello tells whether a new host is at the other end although the hang-up of the old one was never seen: the same HELO
// came twice, each alone in its read. A host sends nothing else until it is answered, and resends with pauses; bytes of a
// session cannot look like this, because they never stand alone without the header of their frame.
func (c *Conn) sawHello(read []byte) bool {
	if len(read) != messageSize || !bytes.HasPrefix(read, magic) || string(read[kindOffset:nonceOffset]) != kindHello {
		c.hello = nil
		return false
	}
	again := bytes.Equal(read, c.hello)
	c.hello = bytes.Clone(read)
	return again
}

func (c *Conn) Write(b []byte) (int, error) {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	select {
	case <-c.done:
		return 0, net.ErrClosed
	default:
	}
	if !c.drain {
		return c.port.Write(b)
	}
	if err := c.port.SetBlocking(true); err != nil {
		return 0, err
	}
	n, err := c.port.Write(b)
	_ = c.port.SetBlocking(false)
	select {
	case <-c.drained:
	default:
		close(c.drained)
	}
	return n, err
}

// DrainNextWrite makes every later write return only when the device has taken its bytes, and returns a channel that is
// closed after the first. A port whose machine powers off loses what is still under way.
func (c *Conn) DrainNextWrite() <-chan struct{} {
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	c.drain = true
	return c.drained
}

// Close ends the session; reads and writes under way return.
func (c *Conn) Close() error {
	c.once.Do(func() {
		close(c.done)
		past := time.Unix(1, 0)
		_ = c.port.SetReadDeadline(past)
		_ = c.port.SetWriteDeadline(past)
	})
	return nil
}

// finish closes the session, waits for its last read and write to return, and hands the port back. It returns the
// handshake bytes that belong to the next session.
func (c *Conn) finish() []byte {
	c.Close()
	c.readMu.Lock()
	defer c.readMu.Unlock()
	c.writeMu.Lock()
	defer c.writeMu.Unlock()
	_ = c.port.SetReadDeadline(time.Time{})
	_ = c.port.SetWriteDeadline(time.Time{})
	return c.hello
}

type addr struct{}

func (addr) Network() string { return "virtio-serial" }
func (addr) String() string  { return "virtio-serial" }

// LocalAddr is a constant; a port has no address.
func (c *Conn) LocalAddr() net.Addr { return addr{} }

// RemoteAddr is a constant; a port has no address.
func (c *Conn) RemoteAddr() net.Addr { return addr{} }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.port.SetReadDeadline(t); err != nil {
		return err
	}
	return c.port.SetWriteDeadline(t)
}

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.port.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.port.SetWriteDeadline(t) }
