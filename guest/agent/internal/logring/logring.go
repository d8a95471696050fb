// Package logring is the agent's log: JSON lines kept in a bounded ring, which the host can read and follow, and for
// warnings and errors the kernel's log, which reaches the console of the utility VM.
package logring

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
)

// limit is how many bytes of the latest lines are kept.
const limit = 256 << 10

// Ring holds the latest lines. Its Write takes one line at a time, as slog's handlers give them.
type Ring struct {
	mu    sync.Mutex
	lines [][]byte
	size  int
	// Number of lines ever dropped from the front, so a follower knows where it is.
	dropped uint64
	changed chan struct{}
}

// New makes an empty ring.
func New() *Ring { return &Ring{changed: make(chan struct{})} }

func (r *Ring) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, bytes.Clone(line))
	r.size += len(line)
	for r.size > limit && len(r.lines) > 1 {
		r.size -= len(r.lines[0])
		r.lines[0] = nil
		r.lines = r.lines[1:]
		r.dropped++
	}
	close(r.changed)
	r.changed = make(chan struct{})
	return len(line), nil
}

// Follow writes the kept lines, then each new one, until the context ends or a write fails. A slow reader misses lines and
// is told how many.
func (r *Ring) Follow(ctx context.Context, w io.Writer) error {
	next := uint64(0)
	for {
		r.mu.Lock()
		missed := uint64(0)
		if next < r.dropped {
			missed, next = r.dropped-next, r.dropped
			if next == missed {
				// What was dropped before this reader came is not missed.
				missed = 0
			}
		}
		batch := bytes.Join(r.lines[next-r.dropped:], nil)
		next = r.dropped + uint64(len(r.lines))
		changed := r.changed
		r.mu.Unlock()
		if missed > 0 {
			batch = append(fmt.Appendf(nil, `{"level":"WARN","msg":"lines were dropped","count":%d}`+"\n", missed), batch...)
		}
		if len(batch) > 0 {
			if _, err := w.Write(batch); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Logger logs to the ring, and warnings and errors to the kernel's log as well.
func Logger(ring *Ring) *slog.Logger {
	return slog.New(&handler{Handler: slog.NewJSONHandler(ring, &slog.HandlerOptions{Level: slog.LevelDebug})})
}

type handler struct{ slog.Handler }

// Handle never fails: a log that cannot be written must not stop what is logged.
func (h *handler) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelWarn {
		text := record.Message
		record.Attrs(func(a slog.Attr) bool {
			text += fmt.Sprintf(" %s=%q", a.Key, a.Value.String())
			return true
		})
		toKernel(text)
	}
	_ = h.Handler.Handle(ctx, record)
	return nil
}

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{Handler: h.Handler.WithAttrs(attrs)}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{Handler: h.Handler.WithGroup(name)}
}

// kernelLine is the longest line given to the kernel, whose own limit is about 1000 bytes.
const kernelLine = 800

func toKernel(text string) {
	// <3> is "error": the console shows it even when the kernel was told to be quiet.
	line := "<3>lcow-agent: " + text
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer kmsg.Close()
	_, _ = kmsg.WriteString(line[:min(len(line), kernelLine)] + "\n")
}
