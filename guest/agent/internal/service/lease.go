package service

import (
	"context"
	"sync"
	"time"

	"lcow.dev/agent/internal/guestpb"
)

// lease turns the machine off when no host has been connected for long enough.
type lease struct {
	mu        sync.Mutex
	length    time.Duration
	timer     *time.Timer
	hasHost   bool
	expired   func()
	suspended bool
}

func (l *lease) connected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasHost = true
	l.update()
}

func (l *lease) disconnected() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hasHost = false
	l.update()
}

func (l *lease) set(length time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.length = length
	l.update()
}

// update starts or stops the timer; the caller holds the lock.
func (l *lease) update() {
	if l.timer != nil {
		l.timer.Stop()
		l.timer = nil
	}
	if l.hasHost || l.length == 0 || l.suspended {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(l.length, func() {
		l.mu.Lock()
		still := l.timer == timer
		l.suspended = l.suspended || still
		l.mu.Unlock()
		if still {
			l.expired()
		}
	})
	l.timer = timer
}

// SetOwner sets the lease.
func (s *Service) SetOwner(_ context.Context, r *guestpb.SetOwnerRequest) (*guestpb.SetOwnerResponse, error) {
	s.lease.set(time.Duration(r.LeaseMs) * time.Millisecond)
	return &guestpb.SetOwnerResponse{}, nil
}
