package logring

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"
)

// sink collects what Follow writes.
type sink struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *sink) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *sink) lines() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Split(strings.TrimSuffix(s.text.String(), "\n"), "\n")
}

func TestKeptLinesComeFirstThenNewOnes(t *testing.T) {
	ring := New()
	log := Logger(ring)
	log.Info("first", "n", 1)
	ctx, cancel := context.WithCancel(context.Background())
	var s sink
	ended := make(chan error)
	go func() { ended <- ring.Follow(ctx, &s) }()
	for len(s.lines()) < 1 || s.lines()[0] == "" {
		time.Sleep(time.Millisecond)
	}
	log.Debug("second")
	for len(s.lines()) < 2 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-ended; err != context.Canceled {
		t.Fatal(err)
	}
	for i, want := range []string{"first", "second"} {
		var entry struct {
			Time       time.Time
			Level, Msg string
		}
		if err := json.Unmarshal([]byte(s.lines()[i]), &entry); err != nil || entry.Msg != want || entry.Time.IsZero() || entry.Level == "" {
			t.Fatal(s.lines()[i], err)
		}
	}
}

func TestRingIsBounded(t *testing.T) {
	ring := New()
	line := []byte(strings.Repeat("x", 999) + "\n")
	for range 2 * limit / len(line) {
		_, _ = ring.Write(line)
	}
	if ring.size > limit || ring.dropped == 0 {
		t.Fatal(ring.size, ring.dropped)
	}
	_, _ = ring.Write(bytes.Repeat([]byte("y"), 2*limit))
	if len(ring.lines) != 1 {
		t.Fatal(len(ring.lines))
	}
}

// slow blocks in its first write until it is told to go on.
type slow struct {
	sink
	once    sync.Once
	arrived chan struct{}
	goOn    chan struct{}
}

func (s *slow) Write(b []byte) (int, error) {
	s.once.Do(func() {
		close(s.arrived)
		<-s.goOn
	})
	return s.sink.Write(b)
}

func TestSlowReaderIsToldHowManyLinesItMissed(t *testing.T) {
	ring := New()
	_, _ = ring.Write([]byte("first\n"))
	s := &slow{arrived: make(chan struct{}), goOn: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- ring.Follow(ctx, s) }()
	<-s.arrived
	total := 3 * limit / 1000
	for i := range total {
		_, _ = ring.Write([]byte(fmt.Sprintf("%0999d\n", i)))
	}
	close(s.goOn)
	last := fmt.Sprintf("%0999d", total-1)
	for lines := s.lines(); lines[len(lines)-1] != last; lines = s.lines() {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-ended
	var told struct{ Count int }
	if err := json.Unmarshal([]byte(s.lines()[1]), &told); err != nil || told.Count+len(s.lines())-2 != total {
		t.Fatal(s.lines()[1], told.Count, len(s.lines()), total)
	}
}
