package session

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// testPort is a port whose hosts are connections of a unix socket.
type testPort struct {
	listener net.Listener
	mu       sync.Mutex
	conn     net.Conn
}

func newTestPort(t *testing.T) (*testPort, func() net.Conn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "port")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	return &testPort{listener: listener}, func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Error(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
}

func (p *testPort) current() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

func (p *testPort) Read(b []byte) (int, error) {
	conn := p.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Read(b)
	if err != nil && !transient(err) {
		err = io.EOF
	}
	return n, err
}

func (p *testPort) Write(b []byte) (int, error) {
	if conn := p.current(); conn != nil {
		return conn.Write(b)
	}
	return 0, io.ErrClosedPipe
}

func (p *testPort) SetReadDeadline(t time.Time) error {
	if conn := p.current(); conn != nil {
		return conn.SetReadDeadline(t)
	}
	return nil
}

func (p *testPort) SetWriteDeadline(t time.Time) error {
	if conn := p.current(); conn != nil {
		return conn.SetWriteDeadline(t)
	}
	return nil
}

func (p *testPort) SetBlocking(bool) error { return nil }

func (p *testPort) WaitHost() error {
	conn, err := p.listener.Accept()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = conn
	return nil
}

func message(kind string, fill byte) []byte {
	return append([]byte("LCOW"+kind), bytes.Repeat([]byte{fill}, nonceSize)...)
}

func write(t *testing.T, conn net.Conn, pieces ...[]byte) {
	t.Helper()
	for _, piece := range pieces {
		if _, err := conn.Write(piece); err != nil {
			t.Fatal(err)
		}
	}
}

func expect(t *testing.T, conn net.Conn, want []byte) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
}

func expectSilence(t *testing.T, conn net.Conn) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(30 * time.Millisecond))
	if n, err := conn.Read(make([]byte, 100)); !transient(err) {
		t.Fatalf("read %d bytes, %v; want nothing", n, err)
	}
}

// accept runs Accept beside the test, which plays the host.
func accept(t *testing.T, a *Acceptor) func() *Conn {
	t.Helper()
	result := make(chan *Conn, 1)
	go func() {
		conn, err := a.Accept()
		if err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		result <- conn
	}()
	return func() *Conn {
		select {
		case conn := <-result:
			return conn
		case <-time.After(5 * time.Second):
			t.Fatal("no session began")
			return nil
		}
	}
}

func TestSessionBeginsAfterTheNonceWentBothWays(t *testing.T) {
	port, dial := newTestPort(t)
	accepted := accept(t, NewAcceptor(port))
	host := dial()
	write(t, host, message("HELO", 1))
	expect(t, host, message("ECHO", 1))
	write(t, host, message("STRT", 1))
	expect(t, host, message("REDY", 1))
	session := accepted()
	write(t, host, []byte("request"))
	buffer := make([]byte, 100)
	if n, err := session.Read(buffer); err != nil || string(buffer[:n]) != "request" {
		t.Fatalf("read %q, %v", buffer[:n], err)
	}
	if _, err := session.Write([]byte("answer")); err != nil {
		t.Fatal(err)
	}
	expect(t, host, []byte("answer"))
}

func TestBytesBeforeTheHandshakeAreDroppedWhereverTheyAreCut(t *testing.T) {
	random := rand.New(rand.NewSource(1))
	for range 50 {
		port, dial := newTestPort(t)
		accepted := accept(t, NewAcceptor(port))
		host := dial()
		stale := make([]byte, random.Intn(100))
		random.Read(stale)
		stale = append(stale, "LCOWLCLCOWHEL"[:random.Intn(13)]...)
		all := append(append(stale, message("HELO", 7)...), message("HELO", 7)...)
		for len(all) > 0 {
			n := 1 + random.Intn(len(all))
			write(t, host, all[:n])
			all = all[n:]
		}
		expect(t, host, message("ECHO", 7))
		expect(t, host, message("ECHO", 7))
		write(t, host, message("STRT", 7))
		expect(t, host, message("REDY", 7))
		accepted()
		_ = host.Close()
	}
}

func TestStartWithAnotherNonceIsDropped(t *testing.T) {
	port, dial := newTestPort(t)
	accepted := accept(t, NewAcceptor(port))
	host := dial()
	write(t, host, message("STRT", 1))
	expectSilence(t, host)
	write(t, host, message("HELO", 1))
	expect(t, host, message("ECHO", 1))
	write(t, host, message("HELO", 2))
	expect(t, host, message("ECHO", 2))
	write(t, host, message("STRT", 1))
	expectSilence(t, host)
	write(t, host, message("STRT", 2))
	expect(t, host, message("REDY", 2))
	accepted()
}

func TestNonceOfAHostThatHungUpDoesNotBeginASession(t *testing.T) {
	port, dial := newTestPort(t)
	accepted := accept(t, NewAcceptor(port))
	first := dial()
	write(t, first, message("HELO", 1))
	expect(t, first, message("ECHO", 1))
	_ = first.Close()
	second := dial()
	write(t, second, message("STRT", 1))
	expectSilence(t, second)
	write(t, second, message("HELO", 3))
	expect(t, second, message("ECHO", 3))
	write(t, second, message("STRT", 3))
	expect(t, second, message("REDY", 3))
	accepted()
}

func TestHangUpEndsTheSessionAndTheNextHostGetsANewOne(t *testing.T) {
	port, dial := newTestPort(t)
	acceptor := NewAcceptor(port)
	for i := range byte(5) {
		accepted := accept(t, acceptor)
		host := dial()
		write(t, host, message("HELO", i))
		expect(t, host, message("ECHO", i))
		write(t, host, message("STRT", i))
		expect(t, host, message("REDY", i))
		session := accepted()
		_ = host.Close()
		if _, err := session.Read(make([]byte, 10)); err != io.EOF {
			t.Fatalf("read after the hang-up: %v", err)
		}
		if _, err := session.Write([]byte("late")); !errors.Is(err, net.ErrClosed) {
			t.Fatalf("write after the hang-up: %v", err)
		}
		<-session.Done()
	}
}

func TestNewHostIsHeardAlthoughTheHangUpWasMissed(t *testing.T) {
	port, dial := newTestPort(t)
	acceptor := NewAcceptor(port)
	accepted := accept(t, acceptor)
	host := dial()
	write(t, host, message("HELO", 1))
	expect(t, host, message("ECHO", 1))
	write(t, host, message("STRT", 1))
	expect(t, host, message("REDY", 1))
	session := accepted()
	// The same connection stands for the port on which close and open were seen as one. Half a frame is under way.
	write(t, host, []byte("\x00\x00\x10\x00half a frame"))
	buffer := make([]byte, 4096)
	if _, err := session.Read(buffer); err != nil {
		t.Fatal(err)
	}
	write(t, host, message("HELO", 2))
	if _, err := session.Read(buffer); err != nil {
		t.Fatalf("one HELO may be a coincidence, but ended the session: %v", err)
	}
	write(t, host, message("HELO", 2))
	if _, err := session.Read(buffer); err != io.EOF {
		t.Fatalf("the session goes on: %v", err)
	}
	next := accept(t, acceptor)
	expect(t, host, message("ECHO", 2))
	write(t, host, message("STRT", 2))
	expect(t, host, message("REDY", 2))
	if next() == session {
		t.Fatal("no new session")
	}
}

func TestCloseReleasesReadsAndWritesUnderWay(t *testing.T) {
	port, dial := newTestPort(t)
	accepted := accept(t, NewAcceptor(port))
	host := dial()
	write(t, host, message("HELO", 1), message("STRT", 1))
	expect(t, host, append(message("ECHO", 1), message("REDY", 1)...))
	session := accepted()
	ended := make(chan error, 2)
	go func() {
		_, err := session.Read(make([]byte, 1))
		ended <- err
	}()
	go func() {
		// More than the socket takes: nobody reads.
		_, err := session.Write(make([]byte, 16<<20))
		ended <- err
	}()
	time.Sleep(10 * time.Millisecond)
	_ = session.Close()
	for range 2 {
		select {
		case err := <-ended:
			if err == nil {
				t.Fatal("it succeeded")
			}
		case <-time.After(5 * time.Second):
			t.Fatal("still blocked")
		}
	}
}

func TestDrainTellsWhenTheNextWriteHasGone(t *testing.T) {
	port, dial := newTestPort(t)
	accepted := accept(t, NewAcceptor(port))
	host := dial()
	write(t, host, message("HELO", 1), message("STRT", 1))
	session := accepted()
	drained := session.DrainNextWrite()
	select {
	case <-drained:
		t.Fatal("drained before a write")
	default:
	}
	if _, err := session.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	<-drained
	if _, err := session.Write([]byte("y")); err != nil {
		t.Fatal(err)
	}
}
