package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/mux"
)

// The ring of an output grows from the first size to the second as the process writes faster than the host takes. The
// second is the multiplexer's window, so a host that takes everything never waits for the ring.
const (
	ringFirst = 4096
	ringLimit = mux.Window
)

// Output relays what a process writes. It keeps what the host has not acknowledged, at most ringLimit bytes, then leaves
// the process blocked in its write; so a host that was away misses nothing. A host that cancels the stream wants no more
// of it: then the oldest bytes make room for the newest, and the process never waits. A host that resets it for an I/O
// error has lost its reader: then the process' pipe breaks, and it gets SIGPIPE as it would on one machine.
//
// Positions count bytes since the process began: base <= sent <= end.
type Output struct {
	source *os.File
	// The master of a terminal, which the input uses as well.
	terminal bool

	mu     sync.Mutex
	cond   *sync.Cond
	closed bool
	lossy  bool
	// Position p is at ring[p % len(ring)]; len(ring) is a power of two.
	ring []byte
	base uint64
	end  uint64
	eof  bool
	// The attachment: who takes the bytes, from where its credit counts, how far it was sent. generation changes with it.
	stream     *mux.Stream
	origin     uint64
	sent       uint64
	generation int
}

// newOutput begins to read from source, and owns it.
func newOutput(source *os.File, terminal bool) *Output {
	o := &Output{source: source, terminal: terminal, ring: make([]byte, ringFirst)}
	o.cond = sync.NewCond(&o.mu)
	go o.fill()
	return o
}

// fill moves bytes from the process into the ring until the last writer has closed.
func (o *Output) fill() {
	for {
		space := o.space()
		n, err := o.source.Read(space)
		o.mu.Lock()
		o.end += uint64(n)
		// A terminal whose last user has gone reads as EIO.
		o.eof = err != nil || space == nil
		eof := o.eof
		o.cond.Broadcast()
		o.mu.Unlock()
		if !eof {
			continue
		}
		if !o.terminal {
			_ = o.source.Close()
		}
		return
	}
}

// space waits for room and returns the longest piece of the ring that can be filled, nil when the output was closed. Only
// fill takes space, so the piece stays free while the lock is not held.
func (o *Output) space() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	for o.end-o.base >= ringLimit && !o.closed {
		if o.lossy {
			o.base += ringLimit / 4
			break
		}
		o.cond.Wait()
	}
	if o.closed {
		return nil
	}
	if used := int(o.end - o.base); used > len(o.ring)/2 && len(o.ring) < ringLimit {
		o.grow(len(o.ring) * 2)
	}
	from := o.end & uint64(len(o.ring)-1)
	room := uint64(len(o.ring)) - (o.end - o.base)
	return o.ring[from:min(from+room, uint64(len(o.ring)))]
}

func (o *Output) grow(size int) {
	ring := make([]byte, size)
	for at := o.base; at < o.end; {
		at += uint64(copy(ring[at&uint64(size-1):], o.piece(at)))
	}
	o.ring = ring
}

// piece is the longest piece of the ring that begins at a position and holds bytes.
func (o *Output) piece(at uint64) []byte {
	from := at & uint64(len(o.ring)-1)
	return o.ring[from:min(from+(o.end-at), uint64(len(o.ring)))]
}

// attach sends everything after offset to a stream, and what is to come. A stream attached before is reset.
func (o *Output) attach(stream *mux.Stream, offset uint64) error {
	o.mu.Lock()
	if offset < o.base || offset > o.end {
		defer o.mu.Unlock()
		return guesterr.New(guestpb.GuestError_WRONG_STATE, fmt.Sprint(offset),
			"output can be sent again from byte %d to %d, not from", o.base, o.end)
	}
	before := o.stream
	o.generation++
	generation := o.generation
	o.stream, o.origin, o.base, o.sent = stream, offset, offset, offset
	o.lossy = false
	o.cond.Broadcast()
	o.mu.Unlock()
	if before != nil {
		before.Reset(mux.ResetCancelled, "another stream was attached")
	}
	stream.Watch(func(acked uint64) { o.acknowledge(generation, acked) }, func() { o.detach(generation, stream.Err()) })
	go o.send(stream, generation)
	return nil
}

func (o *Output) acknowledge(generation int, acked uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.generation == generation {
		o.base = o.origin + acked
		o.cond.Broadcast()
	}
}

// detach keeps the bytes for the next attachment: the stream was reset, or its session is over.
func (o *Output) detach(generation int, err error) {
	var reset *mux.ResetError
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.generation != generation {
		return
	}
	o.generation++
	o.stream = nil
	if errors.As(err, &reset) {
		// A terminal has no reader to lose: to close it would be to hang up.
		if reset.Code == mux.ResetIO && !o.terminal {
			o.closed = true
			_ = o.source.Close()
		} else {
			o.lossy = true
		}
	}
	o.cond.Broadcast()
}

// send moves bytes from the ring to the stream, and END after the last.
func (o *Output) send(stream *mux.Stream, generation int) {
	for {
		o.mu.Lock()
		for o.generation == generation && o.sent == o.end && !o.eof {
			o.cond.Wait()
		}
		if o.generation != generation {
			o.mu.Unlock()
			return
		}
		if o.sent == o.end {
			o.mu.Unlock()
			_ = stream.CloseWrite()
			return
		}
		piece := o.piece(o.sent)
		piece = piece[:min(len(piece), mux.MaxPayload)]
		// Counted before the write: the acknowledgement may come before the write returns.
		o.sent += uint64(len(piece))
		o.mu.Unlock()
		if _, err := stream.Write(piece); err != nil {
			o.detach(generation, err)
			return
		}
	}
}

// beginning is what was written, up to the end of the ring, after the last writer has closed or the limit.
func (o *Output) beginning(limit time.Duration) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	late := false
	timer := time.AfterFunc(limit, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		late = true
		o.cond.Broadcast()
	})
	defer timer.Stop()
	for !o.eof && !late {
		o.cond.Wait()
	}
	return bytes.Clone(o.piece(o.base))
}

// close stops reading. What was read is still sent to the attached stream.
func (o *Output) close() {
	_ = o.source.Close()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	o.cond.Broadcast()
}
