package mux

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// socketPair is a connection with buffers, as a port has.
func socketPair(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		conn, err := net.FileConn(file)
		_ = file.Close()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		ends[i] = conn
	}
	return ends[0], ends[1]
}

// peer plays the host, frame by frame.
type peer struct {
	t    *testing.T
	conn net.Conn
}

func (p *peer) send(id uint32, kind frameType, payload string) {
	p.t.Helper()
	frame := make([]byte, headerSize)
	putHeader(frame, id, kind, len(payload))
	if _, err := p.conn.Write(append(frame, payload...)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) credit(id, n uint32) {
	p.t.Helper()
	p.send(id, frameCredit, string(binary.BigEndian.AppendUint32(nil, n)))
}

func (p *peer) receive() (id uint32, kind frameType, payload string) {
	p.t.Helper()
	_ = p.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(p.conn, header); err != nil {
		p.t.Fatal(err)
	}
	id, kind, length := parseHeader(header)
	body := make([]byte, length)
	if _, err := io.ReadFull(p.conn, body); err != nil {
		p.t.Fatal(err)
	}
	return id, kind, string(body)
}

func (p *peer) expect(id uint32, kind frameType, payload string) {
	p.t.Helper()
	gotID, gotKind, got := p.receive()
	if gotID != id || gotKind != kind || got != payload {
		p.t.Fatalf("received type %d on stream %d with %q; want %d on %d with %q", gotKind, gotID, got, kind, id, payload)
	}
}

func start(t *testing.T) (*Mux, *peer, <-chan error) {
	t.Helper()
	ours, theirs := socketPair(t)
	m := New(ours)
	served := make(chan error, 1)
	go func() { served <- m.Serve() }()
	return m, &peer{t: t, conn: theirs}, served
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	t.Cleanup(cancel)
	return c
}

func claim(t *testing.T, m *Mux, id uint32) *Stream {
	t.Helper()
	s, err := m.Claim(ctx(t), id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClaimWaitsForTheOpenThatTravelsOnAnotherPort(t *testing.T) {
	m, host, _ := start(t)
	claimed := make(chan *Stream)
	go func() { claimed <- claim(t, m, 3) }()
	time.Sleep(10 * time.Millisecond)
	host.send(1, frameOpen, "")
	host.send(3, frameOpen, "")
	if s := <-claimed; s.ID() != 3 {
		t.Fatal(s.ID())
	}
	if _, err := m.Claim(ctx(t), 3); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Fatal(err)
	}
	if _, err := m.Claim(ctx(t), 2); err == nil {
		t.Fatal("claimed a stream of the guest's own numbers")
	}
	short, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.Claim(short, 99); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
}

func TestWritesStopAtTheCreditAndGoOnWithIt(t *testing.T) {
	m, host, _ := start(t)
	host.send(1, frameOpen, "")
	s := claim(t, m, 1)
	var acked []uint64
	var mu sync.Mutex
	s.Watch(func(n uint64) {
		mu.Lock()
		defer mu.Unlock()
		acked = append(acked, n)
	}, nil)
	written := make(chan int, 1)
	go func() {
		n, _ := s.Write(make([]byte, Window+100))
		written <- n
	}()
	for got := 0; got < Window; {
		_, kind, payload := host.receive()
		if kind != frameData || len(payload) > MaxPayload {
			t.Fatal(kind, len(payload))
		}
		got += len(payload)
	}
	select {
	case <-written:
		t.Fatal("more was written than there was credit")
	case <-time.After(20 * time.Millisecond):
	}
	host.credit(1, 60)
	if _, _, payload := host.receive(); len(payload) != 60 {
		t.Fatal(len(payload))
	}
	host.credit(1, 60)
	if _, _, payload := host.receive(); len(payload) != 40 {
		t.Fatal(len(payload))
	}
	if n := <-written; n != Window+100 {
		t.Fatal(n)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(acked) != 3 || acked[2] != 120 {
		t.Fatal(acked)
	}
}

func TestReceiverIsCreditedForWhatItConsumedOnly(t *testing.T) {
	m, host, _ := start(t)
	host.send(1, frameOpen, "")
	s := claim(t, m, 1)
	piece := strings.Repeat("x", MaxPayload)
	for range Window / MaxPayload {
		host.send(1, frameData, piece)
	}
	for range creditBatch / MaxPayload {
		b, err := s.Receive()
		if err != nil || len(b) != MaxPayload {
			t.Fatal(len(b), err)
		}
		s.Consumed(len(b))
	}
	host.expect(1, frameCredit, string(binary.BigEndian.AppendUint32(nil, creditBatch)))
	for range creditBatch / MaxPayload {
		host.send(1, frameData, piece)
	}
	host.send(1, frameEnd, "")
	total := 0
	for {
		b, err := s.Receive()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		total += len(b)
	}
	if total != Window {
		t.Fatal(total)
	}
}

func TestEachDirectionEndsOnItsOwnAndTheStreamIsGoneWithBoth(t *testing.T) {
	m, host, _ := start(t)
	host.send(1, frameOpen, "")
	s := claim(t, m, 1)
	host.send(1, frameEnd, "")
	if _, err := s.Receive(); err != io.EOF {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("still")); err != nil {
		t.Fatal(err)
	}
	host.expect(1, frameData, "still")
	if err := s.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	host.expect(1, frameEnd, "")
	if _, err := s.Write([]byte("no")); err == nil {
		t.Fatal("wrote after END")
	}
	// For a stream that is gone everything is dropped.
	host.send(1, frameData, "late")
	host.credit(1, 1)
	host.send(3, frameOpen, "")
	claim(t, m, 3)
	if _, err := m.Claim(ctx(t), 1); err == nil {
		t.Fatal("claimed a stream that is gone")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.streams) != 1 {
		t.Fatal(m.streams)
	}
}

func TestResetEndsBothDirections(t *testing.T) {
	m, host, _ := start(t)
	host.send(1, frameOpen, "")
	host.send(3, frameOpen, "")
	theirs, ours := claim(t, m, 1), claim(t, m, 3)
	failed := make(chan struct{})
	theirs.Watch(nil, func() { close(failed) })
	host.send(1, frameReset, "\x00\x00\x00\x03disk on fire")
	<-failed
	var reset *ResetError
	if _, err := theirs.Receive(); !errors.As(err, &reset) || reset.Code != ResetIO || reset.Text != "disk on fire" {
		t.Fatal(err)
	}
	if _, err := theirs.Write([]byte("x")); !errors.As(err, &reset) {
		t.Fatal(err)
	}
	ours.Reset(ResetCancelled, "enough")
	ours.Reset(ResetCancelled, "again")
	theirs.Reset(ResetCancelled, "late")
	host.expect(3, frameReset, "\x00\x00\x00\x00enough")
	host.send(3, frameData, "under way")
	host.send(5, frameOpen, "")
	claim(t, m, 5)
}

func TestStreamsBeyondTheLimitsAreReset(t *testing.T) {
	m, host, _ := start(t)
	for i := range uint32(maxPending + 2) {
		host.send(2*i+1, frameOpen, "")
	}
	for i := range uint32(2) {
		id, kind, _ := host.receive()
		if id != 2*(maxPending+i)+1 || kind != frameReset {
			t.Fatal(id, kind)
		}
	}
	claim(t, m, 1)
	host.send(2*maxPending+101, frameOpen, "")
	claim(t, m, 2*maxPending+101)
}

func TestProtocolErrorsEndTheSessionAndTellTheHost(t *testing.T) {
	for name, frames := range map[string]func(*peer){
		"DATA for a stream never opened":   func(p *peer) { p.send(5, frameData, "x") },
		"END for a stream never opened":    func(p *peer) { p.send(5, frameEnd, "") },
		"CREDIT for the guest's numbers":   func(p *peer) { p.credit(4, 1) },
		"an even OPEN":                     func(p *peer) { p.send(4, frameOpen, "") },
		"an OPEN with a payload":           func(p *peer) { p.send(3, frameOpen, "x") },
		"an OPEN twice":                    func(p *peer) { p.send(1, frameOpen, "") },
		"stream 0":                         func(p *peer) { p.send(0, frameData, "x") },
		"an unknown type":                  func(p *peer) { p.send(1, 9, "") },
		"a frame too long":                 func(p *peer) { p.send(1, frameData, strings.Repeat("x", MaxPayload+1)) },
		"DATA after END":                   func(p *peer) { p.send(1, frameEnd, ""); p.send(1, frameData, "x") },
		"END after END":                    func(p *peer) { p.send(1, frameEnd, ""); p.send(1, frameEnd, "") },
		"credit for what was never sent":   func(p *peer) { p.credit(1, 1) },
		"a CREDIT of another length":       func(p *peer) { p.send(1, frameCredit, "xxx") },
		"a RESET without a code":           func(p *peer) { p.send(1, frameReset, "xxx") },
		"the HELO of a host not seen come": func(p *peer) { _, _ = p.conn.Write([]byte("LCOWHELO0123456789abcdef")) },
		"more DATA than credit": func(p *peer) {
			for range Window/MaxPayload + 1 {
				p.send(1, frameData, strings.Repeat("x", MaxPayload))
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, host, served := start(t)
			host.send(1, frameOpen, "")
			s := claim(t, m, 1)
			frames(host)
			if err := <-served; err == nil {
				t.Fatal("the session ended without an error")
			}
			if !errors.Is(s.Err(), ErrClosed) {
				t.Fatal(s.Err())
			}
			id, kind, payload := host.receive()
			if id != 0 || kind != frameReset || payload[:4] != "\x00\x00\x00\x02" {
				t.Fatal(id, kind, payload)
			}
		})
	}
}

func TestHostThatDoesNotReadIsGivenUpAllTheSame(t *testing.T) {
	m, host, served := start(t)
	for i := range uint32(16) {
		host.send(2*i+1, frameOpen, "")
		s := claim(t, m, 2*i+1)
		go func() { _, _ = s.Write(make([]byte, Window)) }()
	}
	host.send(0, frameData, "")
	select {
	case err := <-served:
		if err == nil {
			t.Fatal("no error")
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the session does not end")
	}
}

func TestEndOfTheConnectionFailsStreamsAndClaims(t *testing.T) {
	m, host, served := start(t)
	host.send(1, frameOpen, "")
	s := claim(t, m, 1)
	claimed := make(chan error)
	go func() {
		_, err := m.Claim(ctx(t), 7)
		claimed <- err
	}()
	time.Sleep(10 * time.Millisecond)
	_ = host.conn.Close()
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if _, err := s.Receive(); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := <-claimed; !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestStreamsMakeProgressBesideABusyOne(t *testing.T) {
	m, host, _ := start(t)
	host.send(1, frameOpen, "")
	host.send(3, frameOpen, "")
	busy, quiet := claim(t, m, 1), claim(t, m, 3)
	go func() { _, _ = busy.Write(make([]byte, Window)) }()
	go func() { _, _ = quiet.Write([]byte("word")) }()
	for got := 0; ; {
		id, _, payload := host.receive()
		if id == 3 && payload == "word" {
			return
		}
		if got += len(payload); got > Window {
			t.Fatal("never came")
		}
	}
}

func TestHubGivesTheStreamsOfTheSessionOfTheDay(t *testing.T) {
	hub := NewHub()
	result := make(chan error, 1)
	go func() {
		_, err := hub.Claim(ctx(t), 1)
		result <- err
	}()
	ours, theirs := socketPair(t)
	go func() { _ = hub.Serve(ours) }()
	(&peer{t: t, conn: theirs}).send(1, frameOpen, "")
	if err := <-result; err != nil {
		t.Fatal(err)
	}
}

func FuzzDispatch(f *testing.F) {
	f.Add([]byte{0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 1, 'x'})
	f.Add([]byte{0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 5, 0, 0, 4, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, input []byte) {
		m := New(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(input), io.Discard})
		_ = m.Serve()
		if len(m.streams) != 0 {
			t.Fatal("streams were left")
		}
	})
}
