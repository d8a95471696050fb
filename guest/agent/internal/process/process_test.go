package process

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/mux"
	"lcow.dev/agent/internal/reaper"
)

// children is shared: only one reaper may wait for the test program's children.
var children = sync.OnceValues(reaper.New)

// host is the other end of a session of the multiplexer, with streams 1, 3 and 5 open.
type host struct {
	t    *testing.T
	mux  *mux.Mux
	conn net.Conn

	mu       sync.Mutex
	cond     *sync.Cond
	received map[uint32][]byte
	ended    map[uint32]bool
	reset    map[uint32]string
	done     chan struct{}
	// Whether received bytes are acknowledged at once.
	acknowledge bool
}

func newHost(t *testing.T, acknowledge bool) *host {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
	}
	h := &host{t: t, mux: mux.New(ends[0]), conn: ends[1], acknowledge: acknowledge,
		received: map[uint32][]byte{}, ended: map[uint32]bool{}, reset: map[uint32]string{}, done: make(chan struct{})}
	h.cond = sync.NewCond(&h.mu)
	go func() {
		_ = h.mux.Serve()
		_ = ends[0].Close()
	}()
	go h.read()
	for _, id := range []uint32{1, 3, 5} {
		h.frame(id, 1, nil)
	}
	t.Cleanup(h.hangUp)
	return h
}

func (h *host) hangUp() {
	_ = h.conn.Close()
	<-h.mux.Done()
	<-h.done
}

func (h *host) frame(id uint32, kind byte, payload []byte) {
	frame := binary.BigEndian.AppendUint32(nil, id)
	frame = binary.BigEndian.AppendUint32(frame, uint32(kind)<<24|uint32(len(payload)))
	_, _ = h.conn.Write(append(frame, payload...))
}

func (h *host) read() {
	defer close(h.done)
	header := make([]byte, 8)
	for {
		if _, err := io.ReadFull(h.conn, header); err != nil {
			return
		}
		id, word := binary.BigEndian.Uint32(header), binary.BigEndian.Uint32(header[4:])
		payload := make([]byte, word&0xffffff)
		if _, err := io.ReadFull(h.conn, payload); err != nil {
			return
		}
		h.mu.Lock()
		switch word >> 24 {
		case 2:
			h.received[id] = append(h.received[id], payload...)
		case 4:
			h.ended[id] = true
		case 5:
			h.reset[id] = string(payload[4:])
		}
		h.cond.Broadcast()
		h.mu.Unlock()
		if word>>24 == 2 && h.acknowledge {
			h.frame(id, 3, binary.BigEndian.AppendUint32(nil, uint32(len(payload))))
		}
	}
}

// until waits for a condition on what the host has seen.
func (h *host) until(what string, condition func() bool) {
	h.t.Helper()
	timer := time.AfterFunc(10*time.Second, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.t.Errorf("never: %s", what)
		h.cond.Broadcast()
	})
	defer timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	for !condition() && !h.t.Failed() {
		h.cond.Wait()
	}
	if h.t.Failed() {
		h.t.FailNow()
	}
}

func (h *host) stream(id uint32) *mux.Stream {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	s, err := h.mux.Claim(ctx, id)
	if err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *host) streams() Streams {
	return Streams{Stdin: h.stream(1), Stdout: h.stream(3), Stderr: h.stream(5)}
}

func spawn(t *testing.T, streams Streams, args ...string) *Process {
	t.Helper()
	r, err := children()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Spawn(r, "test", Program{Args: args, Env: []string{"PATH=/usr/bin:/bin"}, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}, streams)
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("setgroups needs root")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Signal(unix.SIGKILL)
		p.Close()
	})
	return p
}

func exitCode(t *testing.T, p *Process) uint32 {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	exit, err := p.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return exit.Code
}

func TestStreamsOfAProgramAreRelayedWithTheirEnds(t *testing.T) {
	h := newHost(t, true)
	p := spawn(t, h.streams(), "sh", "-c", "cat; echo complaint >&2; exit 7")
	h.frame(1, 2, []byte("data\n"))
	h.frame(1, 4, nil)
	h.until("ends", func() bool { return h.ended[3] && h.ended[5] && h.ended[1] })
	if string(h.received[3]) != "data\n" || string(h.received[5]) != "complaint\n" {
		t.Fatalf("%q %q", h.received[3], h.received[5])
	}
	for range 2 {
		if code := exitCode(t, p); code != 7 {
			t.Fatal(code)
		}
	}
}

func TestSignalsEndAProgramWith128AndTheirNumber(t *testing.T) {
	p := spawn(t, Streams{}, "sleep", "1000")
	if err := p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := exitCode(t, p); code != 143 {
		t.Fatal(code)
	}
	if err := p.Signal(unix.SIGTERM); guesterr.ReasonOf(err) != guestpb.GuestError_WRONG_STATE {
		t.Fatal(err)
	}
}

func TestProgramsThatCannotBeStartedTellWhy(t *testing.T) {
	r, err := children()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	write := func(name, content string, mode os.FileMode) string {
		path := folder + "/" + name
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		program Program
		want    guesterr.Reason
	}{
		{Program{}, guestpb.GuestError_COMMAND_NOT_FOUND},
		{Program{Args: []string{""}}, guestpb.GuestError_COMMAND_NOT_FOUND},
		{Program{Args: []string{"no-such-program"}}, guestpb.GuestError_COMMAND_NOT_FOUND},
		{Program{Args: []string{"/no/such/program"}}, guestpb.GuestError_COMMAND_NOT_FOUND},
		{Program{Args: []string{"/etc"}}, guestpb.GuestError_COMMAND_NOT_EXECUTABLE},
		{Program{Args: []string{write("plain", "x", 0o644)}}, guestpb.GuestError_COMMAND_NOT_EXECUTABLE},
		{Program{Args: []string{write("format", "\x7fELF?", 0o755)}}, guestpb.GuestError_COMMAND_NOT_EXECUTABLE},
		{Program{Args: []string{write("interpreter", "#!/no/such/shell\n", 0o755)}}, guestpb.GuestError_COMMAND_NOT_FOUND},
		{Program{Args: []string{"plain"}, Env: []string{"PATH=/nowhere:" + folder}}, guestpb.GuestError_COMMAND_NOT_EXECUTABLE},
		{Program{Args: []string{"true"}, Cwd: "/no/such/folder"}, guestpb.GuestError_BAD_WORKING_DIRECTORY},
		{Program{Args: []string{"true"}, Cwd: "/etc/passwd"}, guestpb.GuestError_BAD_WORKING_DIRECTORY},
	} {
		c.program.UID, c.program.GID = uint32(os.Getuid()), uint32(os.Getgid())
		_, err := Spawn(r, "x", c.program, Streams{})
		if errors.Is(err, unix.EPERM) && os.Getuid() != 0 {
			t.Skip("setgroups needs root")
		}
		if guesterr.ReasonOf(err) != c.want {
			t.Errorf("%q in %q: %v, want %v", c.program.Args, c.program.Cwd, err, c.want)
		}
	}
}

func TestTerminalCarriesBothWaysAndItsSize(t *testing.T) {
	if _, err := os.Stat("/dev/ptmx"); err != nil {
		t.Skip(err)
	}
	h := newHost(t, true)
	r, err := children()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Spawn(r, "tty", Program{
		Args: []string{"sh", "-c", "stty size; read line; stty size; echo got $line"}, Terminal: true, Rows: 12, Columns: 34,
		UID: uint32(os.Getuid()), GID: uint32(os.Getgid()),
	}, Streams{Stdin: h.stream(1), Stdout: h.stream(3)})
	if err != nil {
		t.Skip(err)
	}
	h.until("first size", func() bool { return strings.Contains(string(h.received[3]), "12 34\r\n") })
	if err := p.Resize(50, 132); err != nil {
		t.Fatal(err)
	}
	h.frame(1, 2, []byte("word\r"))
	h.until("end", func() bool { return h.ended[3] })
	if got := string(h.received[3]); !strings.Contains(got, "50 132\r\ngot word\r\n") {
		t.Fatalf("%q", got)
	}
}

// output gives a test an Output and the end that a process would write to.
func output(t *testing.T) (*Output, *os.File) {
	t.Helper()
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetNonblock(ends[0], true)
	w := os.NewFile(uintptr(ends[1]), "writer")
	o := newOutput(os.NewFile(uintptr(ends[0]), "reader"), false)
	t.Cleanup(func() {
		_ = w.Close()
		o.close()
	})
	return o, w
}

func TestOutputIsSentAgainFromWhatTheHostHasConsumed(t *testing.T) {
	o, w := output(t)
	random := rand.New(rand.NewSource(3))
	blob := make([]byte, 3<<20)
	random.Read(blob)
	go func() {
		_, _ = w.Write(blob)
		_ = w.Close()
	}()
	var got []byte
	sessions := 0
	for {
		sessions++
		h := newHost(t, true)
		if err := o.attach(h.stream(3), uint64(len(got))); err != nil {
			t.Fatal(err)
		}
		limit := 1 + random.Intn(400000)
		h.until("bytes", func() bool { return h.ended[3] || len(h.received[3]) >= limit })
		h.hangUp()
		got = append(got, h.received[3]...)
		if h.ended[3] {
			break
		}
	}
	if !bytes.Equal(got, blob) {
		t.Fatalf("%d bytes of %d came back, in %d sessions", len(got), len(blob), sessions)
	}
	if sessions < 4 {
		t.Fatalf("%d sessions test nothing", sessions)
	}
}

func TestProcessWaitsWhenTheRingIsFullAndTheHostAway(t *testing.T) {
	o, w := output(t)
	h := newHost(t, false)
	if err := o.attach(h.stream(3), 0); err != nil {
		t.Fatal(err)
	}
	var written int
	var mu sync.Mutex
	go func() {
		for {
			n, err := w.Write(bytes.Repeat([]byte{byte('a')}, 4096))
			mu.Lock()
			written += n
			mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	h.until("a window", func() bool { return len(h.received[3]) == ringLimit })
	h.hangUp()
	time.Sleep(30 * time.Millisecond)
	mu.Lock()
	before := written
	mu.Unlock()
	if before > ringLimit+(64<<10)+8192 {
		t.Fatalf("%d bytes were taken of a process without a host", before)
	}
	// Nothing was acknowledged, so all of it can be had again.
	again := newHost(t, true)
	if err := o.attach(again.stream(3), 0); err != nil {
		t.Fatal(err)
	}
	again.until("more than the ring", func() bool { return len(again.received[3]) > 2*ringLimit })
	if err := o.attach(newHost(t, true).stream(3), 0); guesterr.ReasonOf(err) != guestpb.GuestError_WRONG_STATE {
		t.Fatalf("acknowledged bytes were promised again: %v", err)
	}
}

func TestProcessGoesOnWhenTheHostResetsItsOutput(t *testing.T) {
	o, w := output(t)
	h := newHost(t, false)
	if err := o.attach(h.stream(3), 0); err != nil {
		t.Fatal(err)
	}
	h.frame(3, 5, []byte{0, 0, 0, 0})
	total := 4 * ringLimit
	for range total / 4096 {
		if _, err := w.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
	}
	_, _ = w.Write([]byte("last words"))
	_ = w.Close()
	o.beginning(10 * time.Second)
	again := newHost(t, true)
	if err := o.attach(again.stream(3), uint64(total)); err != nil {
		t.Fatal(err)
	}
	again.until("end", func() bool { return again.ended[3] })
	if string(again.received[3]) != "last words" {
		t.Fatalf("%d bytes", len(again.received[3]))
	}
}

func TestPipeOfAProcessBreaksWhenItsReaderOnTheHostHasGone(t *testing.T) {
	h := newHost(t, true)
	p := spawn(t, Streams{Stdout: h.stream(3)}, "sh", "-c", "while echo word; do :; done 2>&1; exit 0")
	h.until("output", func() bool { return len(h.received[3]) > 0 })
	h.frame(3, 5, []byte{0, 0, 0, 3})
	if code := exitCode(t, p); code != 128+uint32(unix.SIGPIPE) {
		t.Fatal(code)
	}
}

func TestSecondAttachmentResetsTheFirst(t *testing.T) {
	o, w := output(t)
	h := newHost(t, true)
	if err := o.attach(h.stream(3), 0); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("one"))
	h.until("one", func() bool { return string(h.received[3]) == "one" })
	if err := o.attach(h.stream(5), 3); err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write([]byte("two"))
	h.until("two", func() bool { return string(h.received[5]) == "two" && h.reset[3] != "" })
}

func TestInputIsCountedExactlyOverABrokenSession(t *testing.T) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	_ = unix.SetNonblock(ends[1], true)
	reader := os.NewFile(uintptr(ends[0]), "reader")
	defer reader.Close()
	in := newInput(os.NewFile(uintptr(ends[1]), "writer"), false)
	blob := make([]byte, 1<<20)
	rand.New(rand.NewSource(5)).Read(blob)
	var got bytes.Buffer
	read := func(n int) {
		if _, err := io.CopyN(&got, reader, int64(n)); err != nil {
			t.Error(err)
		}
	}
	h := newHost(t, true)
	if taken := in.attach(h.stream(1)); taken != 0 {
		t.Fatal(taken)
	}
	for at := 0; at < mux.Window; at += mux.MaxPayload {
		h.frame(1, 2, blob[at:at+mux.MaxPayload])
	}
	read(100000)
	// The pump is blocked in a write now: the pipe is full and nobody reads.
	time.Sleep(20 * time.Millisecond)
	h.hangUp()
	again := newHost(t, true)
	taken := int(in.attach(again.stream(1)))
	if taken < 100000 || taken >= mux.Window {
		t.Fatal(taken)
	}
	go func() {
		for rest := blob[taken : taken+mux.Window]; len(rest) > 0; {
			n := min(len(rest), 1000)
			again.frame(1, 2, rest[:n])
			rest = rest[n:]
		}
		again.frame(1, 4, nil)
	}()
	_, _ = io.Copy(&got, reader)
	if !bytes.Equal(got.Bytes(), blob[:taken+mux.Window]) {
		t.Fatalf("%d bytes, the guest said it had taken %d", got.Len(), taken)
	}
	again.until("the guest's END", func() bool { return again.ended[1] })
}

func TestInputOfAProgramThatDoesNotReadIsReset(t *testing.T) {
	h := newHost(t, true)
	p := spawn(t, Streams{Stdin: h.stream(1)}, "true")
	exitCode(t, p)
	h.until("reset", func() bool { return h.reset[1] != "" })
}

func TestRingKeepsItsBytesWhenItGrows(t *testing.T) {
	o := &Output{ring: make([]byte, 16)}
	for i := range o.ring {
		o.ring[i] = byte('a' + i)
	}
	// Positions 10 to 26 are held, wrapped around.
	o.base, o.end = 10, 26
	var before []byte
	for at := o.base; at < o.end; at += uint64(len(o.piece(at))) {
		before = append(before, o.piece(at)...)
	}
	o.grow(32)
	var after []byte
	for at := o.base; at < o.end; at += uint64(len(o.piece(at))) {
		after = append(after, o.piece(at)...)
	}
	if !bytes.Equal(before, after) || len(after) != 16 {
		t.Fatal(fmt.Sprintf("%q became %q", before, after))
	}
}
