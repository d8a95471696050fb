package mux

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// creditBatch is how many consumed bytes are gathered before they are credited: a quarter of the window, so the sender
// never waits for it.
const creditBatch = Window / 4

// ResetError is the error of a stream that the peer has reset.
type ResetError struct {
	Code ResetCode
	Text string
}

func (e *ResetError) Error() string {
	return fmt.Sprintf("stream reset by the host (code %d): %s", e.Code, e.Text)
}

// Stream is one stream: bytes both ways, each way ended on its own.
type Stream struct {
	mux     *Mux
	id      uint32
	claimed bool // guarded by mux.mu

	mu   sync.Mutex
	cond *sync.Cond
	// Received, not yet taken.
	inbox [][]byte
	// What the peer may still send.
	granted    int
	consumed   int
	peerEnded  bool
	localEnded bool
	credit     int
	sent       uint64
	acked      uint64
	onCredit   func(acked uint64)
	onFail     func()
	failure    error
	done       chan struct{}
}

func newStream(m *Mux, id uint32) *Stream {
	s := &Stream{mux: m, id: id, granted: Window, credit: Window, done: make(chan struct{})}
	s.cond = sync.NewCond(&s.mu)
	return s
}

// ID is the stream's number in its session.
func (s *Stream) ID() uint32 { return s.id }

// Done is closed when the stream is reset or its session over; not by END.
func (s *Stream) Done() <-chan struct{} { return s.done }

// Err is the reason why Done is closed.
func (s *Stream) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// Watch has credit called, in order, with the total of the bytes the peer has acknowledged, and fail once when Done is
// closed, both at once when it has happened already. They must not block; credit must not call the stream.
func (s *Stream) Watch(credit func(acked uint64), fail func()) {
	s.mu.Lock()
	if credit != nil {
		s.onCredit = credit
		credit(s.acked)
	}
	failed := s.failure != nil
	s.onFail = fail
	s.mu.Unlock()
	if failed && fail != nil {
		fail()
	}
}

// Receive waits for the next piece of what the peer sends; io.EOF after its END. The bytes are the caller's, who
// acknowledges them with Consumed.
func (s *Stream) Receive() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.failure != nil:
			return nil, s.failure
		case len(s.inbox) > 0:
			piece := s.inbox[0]
			s.inbox[0] = nil
			s.inbox = s.inbox[1:]
			return piece, nil
		case s.peerEnded:
			return nil, io.EOF
		}
		s.cond.Wait()
	}
}

// Consumed acknowledges bytes given by Receive, so that the peer may send as many more.
func (s *Stream) Consumed(n int) {
	s.mu.Lock()
	s.consumed += n
	give := s.consumed
	if give < creditBatch || s.failure != nil || s.peerEnded {
		s.mu.Unlock()
		return
	}
	s.consumed = 0
	s.granted += give
	s.mu.Unlock()
	var payload [4]byte
	binary.BigEndian.PutUint32(payload[:], uint32(give))
	_ = s.mux.writeFrame(s.id, frameCredit, payload[:])
}

// Write sends b, waiting for credit. n counts what has gone to the port.
func (s *Stream) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		s.mu.Lock()
		for s.failure == nil && s.credit == 0 && !s.localEnded {
			s.cond.Wait()
		}
		if s.failure != nil || s.localEnded {
			err := s.failure
			s.mu.Unlock()
			if err == nil {
				err = io.ErrClosedPipe
			}
			return n, err
		}
		piece := b[:min(len(b), s.credit, MaxPayload)]
		s.credit -= len(piece)
		s.sent += uint64(len(piece))
		s.mu.Unlock()
		if err := s.mux.writeFrame(s.id, frameData, piece); err != nil {
			return n, err
		}
		n += len(piece)
		b = b[len(piece):]
	}
	return n, nil
}

// CloseWrite sends END; the other direction goes on.
func (s *Stream) CloseWrite() error {
	s.mu.Lock()
	if s.localEnded || s.failure != nil {
		defer s.mu.Unlock()
		return s.failure
	}
	s.localEnded = true
	over := s.peerEnded
	s.cond.Broadcast()
	s.mu.Unlock()
	err := s.mux.writeFrame(s.id, frameEnd, nil)
	if over {
		s.mux.forget(s)
	}
	return err
}

// Reset ends the stream in both directions and tells the peer. On a stream that is over it does nothing.
func (s *Stream) Reset(code ResetCode, text string) {
	s.mu.Lock()
	over := s.failure != nil || (s.localEnded && s.peerEnded)
	s.mu.Unlock()
	if over {
		return
	}
	s.mux.forget(s)
	s.fail(&ResetError{Code: code, Text: text})
	_ = s.mux.writeFrame(s.id, frameReset, resetPayload(code, text))
}

func (s *Stream) fail(err error) {
	s.mu.Lock()
	if s.failure != nil {
		s.mu.Unlock()
		return
	}
	s.failure = err
	s.inbox = nil
	close(s.done)
	s.cond.Broadcast()
	onFail := s.onFail
	s.mu.Unlock()
	if onFail != nil {
		onFail()
	}
}

// received takes a DATA frame.
func (s *Stream) received(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.peerEnded {
		return fmt.Errorf("DATA after END on stream %d", s.id)
	}
	if len(b) > s.granted {
		return fmt.Errorf("%d bytes of DATA against %d of credit on stream %d", len(b), s.granted, s.id)
	}
	if len(b) == 0 || s.failure != nil {
		return nil
	}
	s.granted -= len(b)
	s.inbox = append(s.inbox, b)
	s.cond.Broadcast()
	return nil
}

// credited takes a CREDIT frame.
func (s *Stream) credited(n uint32) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.acked+uint64(n) > s.sent {
		return fmt.Errorf("credit for %d bytes never sent on stream %d", s.acked+uint64(n)-s.sent, s.id)
	}
	s.acked += uint64(n)
	s.credit += int(n)
	if s.onCredit != nil {
		s.onCredit(s.acked)
	}
	s.cond.Broadcast()
	return nil
}

// ended takes an END frame.
func (s *Stream) ended() error {
	s.mu.Lock()
	if s.peerEnded {
		s.mu.Unlock()
		return fmt.Errorf("END after END on stream %d", s.id)
	}
	s.peerEnded = true
	over := s.localEnded
	s.cond.Broadcast()
	s.mu.Unlock()
	if over {
		s.mux.forget(s)
	}
	return nil
}
