package process

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"lcow.dev/agent/internal/mux"
)

// Input relays standard input to a process. It counts exactly what the process' pipe has taken, so that a host whose
// session broke can go on from there.
type Input struct {
	target *os.File
	// A terminal stays open after the host's END: its other end is still read and written.
	terminal bool

	mu         sync.Mutex
	stream     *mux.Stream
	pumped     chan struct{}
	generation int
	taken      uint64
	closed     bool
}

func newInput(target *os.File, terminal bool) *Input {
	return &Input{target: target, terminal: terminal}
}

// attach takes bytes from a stream from now on and returns how many earlier ones were taken. A stream attached before is
// reset.
func (in *Input) attach(stream *mux.Stream) uint64 {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.stream != nil {
		before, pumped := in.stream, in.pumped
		in.mu.Unlock()
		before.Reset(mux.ResetCancelled, "another stream was attached")
		<-pumped
		in.mu.Lock()
	}
	if in.closed {
		go stream.Reset(mux.ResetCancelled, "the process has closed its standard input")
		return in.taken
	}
	in.generation++
	generation, pumped := in.generation, make(chan struct{})
	in.stream, in.pumped = stream, pumped
	_ = in.target.SetWriteDeadline(time.Time{})
	go func() {
		stream.Watch(nil, func() { in.interrupt(generation) })
		in.pump(stream)
		in.mu.Lock()
		in.stream = nil
		in.mu.Unlock()
		close(pumped)
	}()
	return in.taken
}

// interrupt ends a write that waits for the process to read, so that the count is exact before another attachment begins.
func (in *Input) interrupt(generation int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.generation == generation {
		_ = in.target.SetWriteDeadline(time.Unix(1, 0))
	}
}

func (in *Input) pump(stream *mux.Stream) {
	for {
		piece, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			if !in.terminal {
				in.close("")
			}
			_ = stream.CloseWrite()
			return
		}
		if err != nil {
			return
		}
		n, err := in.target.Write(piece)
		in.mu.Lock()
		in.taken += uint64(n)
		in.mu.Unlock()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			in.close("")
			stream.Reset(mux.ResetCancelled, "the process has closed its standard input")
			return
		}
		stream.Consumed(n)
	}
}

// close ends the process' standard input. A stream still attached is reset with the reason, if there is one.
func (in *Input) close(reason string) {
	in.mu.Lock()
	already := in.closed
	in.closed = true
	stream := in.stream
	in.mu.Unlock()
	if !already && !in.terminal {
		_ = in.target.Close()
	}
	if stream != nil && reason != "" {
		stream.Reset(mux.ResetCancelled, reason)
	}
}
