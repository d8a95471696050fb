package mux

import (
	"context"
	"io"
	"sync"
)

// Hub holds the session of the day, so that a request can claim its streams whichever port answered first.
type Hub struct {
	mu      sync.Mutex
	current *Mux
	changed chan struct{}
}

// NewHub makes a Hub without a session.
func NewHub() *Hub { return &Hub{changed: make(chan struct{})} }

// Serve runs one session over conn, and returns when it is over.
func (h *Hub) Serve(conn io.ReadWriter) error {
	m := New(conn)
	h.set(m)
	defer h.set(nil)
	return m.Serve()
}

func (h *Hub) set(m *Mux) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.current = m
	close(h.changed)
	h.changed = make(chan struct{})
}

// Claim claims a stream of the current session, waiting for a session and for the stream as long as ctx lives.
func (h *Hub) Claim(ctx context.Context, id uint32) (*Stream, error) {
	for {
		h.mu.Lock()
		m, changed := h.current, h.changed
		h.mu.Unlock()
		if m != nil {
			return m.Claim(ctx, id)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
