package mux

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// ErrClosed is the error of streams whose session is over.
var ErrClosed = errors.New("the multiplexer's session is over")

// controlLimit bounds the frames that answer the peer's and wait to be written; a peer that sends and does not read them
// breaks the session.
const controlLimit = 4096

// Mux is one session of the multiplexer. The host opens streams; requests claim them by id.
type Mux struct {
	conn io.ReadWriter

	writeMu sync.Mutex
	frame   []byte

	mu sync.Mutex
	// Every open stream, pending or claimed.
	streams map[uint32]*Stream
	pending int
	// Ids increase, so an odd id up to here was opened before.
	highest uint32
	waiters map[uint32]chan struct{}
	control [][]byte
	failure error

	wake chan struct{}
	done chan struct{}
}

// New makes a Mux; Serve runs it.
func New(conn io.ReadWriter) *Mux {
	return &Mux{
		conn:    conn,
		frame:   make([]byte, headerSize+MaxPayload),
		streams: map[uint32]*Stream{},
		waiters: map[uint32]chan struct{}{},
		wake:    make(chan struct{}, 1),
		done:    make(chan struct{}),
	}
}

// Serve reads frames until the session ends; nil when the peer went away.
func (m *Mux) Serve() error {
	go m.writeControl()
	err := m.read()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	m.mu.Lock()
	m.failure = ErrClosed
	streams := m.streams
	m.streams = map[uint32]*Stream{}
	close(m.done)
	m.mu.Unlock()
	for _, s := range streams {
		s.fail(ErrClosed)
	}
	if err != nil {
		m.giveUp(err)
	}
	return err
}

// farewellLimit bounds the wait for a host that does not read: while it lasts, no other host is heard.
const farewellLimit = time.Second

// giveUp tells the host, which cannot see that this end closes, by a frame that no session has.
func (m *Mux) giveUp(err error) {
	if conn, ok := m.conn.(interface{ SetWriteDeadline(time.Time) error }); ok {
		// For writes under way as well, which the frame waits for.
		_ = conn.SetWriteDeadline(time.Now().Add(farewellLimit))
	}
	_ = m.writeFrame(0, frameReset, resetPayload(ResetProtocol, err.Error()))
}

// Done is closed when the session is over.
func (m *Mux) Done() <-chan struct{} { return m.done }

func (m *Mux) read() error {
	reader := bufio.NewReaderSize(m.conn, 16384)
	header := make([]byte, headerSize)
	scratch := make([]byte, MaxPayload)
	for {
		if _, err := io.ReadFull(reader, header); err != nil {
			return err
		}
		id, kind, length := parseHeader(header)
		if id == 0 {
			return errors.New("frame for stream 0")
		}
		if length > MaxPayload {
			return fmt.Errorf("frame of %d bytes for stream %d", length, id)
		}
		payload := scratch[:length]
		if kind == frameData {
			// The stream keeps it.
			payload = make([]byte, length)
		}
		if _, err := io.ReadFull(reader, payload); err != nil {
			return err
		}
		if err := m.dispatch(id, kind, payload); err != nil {
			return err
		}
	}
}

func (m *Mux) dispatch(id uint32, kind frameType, payload []byte) error {
	if kind == frameOpen {
		return m.opened(id, payload)
	}
	m.mu.Lock()
	s, open := m.streams[id]
	known := open || (id%2 == 1 && id <= m.highest)
	m.mu.Unlock()
	switch {
	case kind < frameOpen || kind > frameReset:
		return fmt.Errorf("frame of unknown type %d", kind)
	case !known && kind != frameReset:
		return fmt.Errorf("frame of type %d for stream %d, which was never opened", kind, id)
	case !open:
		return nil
	}
	switch kind {
	case frameData:
		return s.received(payload)
	case frameCredit:
		if len(payload) != 4 {
			return fmt.Errorf("CREDIT of %d bytes", len(payload))
		}
		return s.credited(binary.BigEndian.Uint32(payload))
	case frameEnd:
		return s.ended()
	default:
		if len(payload) < 4 {
			return fmt.Errorf("RESET of %d bytes", len(payload))
		}
		code := ResetCode(binary.BigEndian.Uint32(payload))
		m.forget(s)
		s.fail(&ResetError{Code: code, Text: string(payload[4:])})
		return nil
	}
}

func (m *Mux) opened(id uint32, payload []byte) error {
	if id%2 == 0 || len(payload) != 0 {
		return fmt.Errorf("bad OPEN for stream %d", id)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if id <= m.highest {
		return fmt.Errorf("OPEN for stream %d after stream %d", id, m.highest)
	}
	m.highest = id
	if len(m.streams) >= maxStreams || m.pending >= maxPending {
		return m.queueControl(id, frameReset, resetPayload(ResetCancelled, "too many streams"))
	}
	s := newStream(m, id)
	m.streams[id] = s
	m.pending++
	if waiter, ok := m.waiters[id]; ok {
		delete(m.waiters, id)
		close(waiter)
	}
	return nil
}

// Claim takes a stream the host has opened. The OPEN travels on another port than the request that names it, so Claim
// waits for it as long as ctx lives.
func (m *Mux) Claim(ctx context.Context, id uint32) (*Stream, error) {
	for {
		m.mu.Lock()
		if m.failure != nil {
			m.mu.Unlock()
			return nil, m.failure
		}
		if s, ok := m.streams[id]; ok {
			defer m.mu.Unlock()
			if s.claimed {
				return nil, fmt.Errorf("stream %d is in use", id)
			}
			s.claimed = true
			m.pending--
			return s, nil
		}
		if id%2 == 0 || id <= m.highest {
			m.mu.Unlock()
			return nil, fmt.Errorf("stream %d is not open", id)
		}
		waiter, ok := m.waiters[id]
		if !ok {
			if len(m.waiters) >= maxStreams {
				m.mu.Unlock()
				return nil, errors.New("too many requests wait for streams")
			}
			waiter = make(chan struct{})
			m.waiters[id] = waiter
		}
		m.mu.Unlock()
		select {
		case <-waiter:
		case <-m.done:
		case <-ctx.Done():
			return nil, fmt.Errorf("stream %d was never opened: %w", id, ctx.Err())
		}
	}
}

// forget removes a stream that is over.
func (m *Mux) forget(s *Stream) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.streams[s.id] != s {
		return
	}
	delete(m.streams, s.id)
	if !s.claimed {
		m.pending--
	}
}

// queueControl has a frame written without waiting for the peer to read: the reader must never block on a write.
// The caller holds m.mu.
func (m *Mux) queueControl(id uint32, kind frameType, payload []byte) error {
	if len(m.control) >= controlLimit {
		return errors.New("the peer does not read")
	}
	frame := make([]byte, headerSize, headerSize+len(payload))
	putHeader(frame, id, kind, len(payload))
	m.control = append(m.control, append(frame, payload...))
	select {
	case m.wake <- struct{}{}:
	default:
	}
	return nil
}

func (m *Mux) writeControl() {
	for {
		select {
		case <-m.wake:
		case <-m.done:
			return
		}
		m.mu.Lock()
		frames := m.control
		m.control = nil
		m.mu.Unlock()
		for _, frame := range frames {
			m.writeMu.Lock()
			_, err := m.conn.Write(frame)
			m.writeMu.Unlock()
			if err != nil {
				return
			}
		}
	}
}

// writeFrame writes one frame in one write of the port.
func (m *Mux) writeFrame(id uint32, kind frameType, payload []byte) error {
	m.writeMu.Lock()
	defer m.writeMu.Unlock()
	putHeader(m.frame, id, kind, len(payload))
	n := copy(m.frame[headerSize:], payload)
	_, err := m.conn.Write(m.frame[:headerSize+n])
	return err
}

func resetPayload(code ResetCode, text string) []byte {
	payload := binary.BigEndian.AppendUint32(nil, uint32(code))
	return append(payload, text[:min(len(text), 1024)]...)
}
