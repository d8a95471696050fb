package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/logring"
	"lcow.dev/agent/internal/mux"
	"lcow.dev/agent/internal/reaper"
	"lcow.dev/agent/internal/session"
)

// socketPort is a port whose hosts are connections of a unix socket.
type socketPort struct {
	listener net.Listener
	mu       sync.Mutex
	conn     net.Conn
}

func (p *socketPort) current() net.Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.conn
}

func (p *socketPort) Read(b []byte) (int, error) {
	conn := p.current()
	if conn == nil {
		return 0, io.EOF
	}
	n, err := conn.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	return n, err
}

func (p *socketPort) Write(b []byte) (int, error)        { return p.current().Write(b) }
func (p *socketPort) SetReadDeadline(t time.Time) error  { return p.current().SetReadDeadline(t) }
func (p *socketPort) SetWriteDeadline(t time.Time) error { return p.current().SetWriteDeadline(t) }
func (p *socketPort) SetBlocking(bool) error             { return nil }

func (p *socketPort) WaitHost() error {
	conn, err := p.listener.Accept()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conn = conn
	return err
}

var children = sync.OnceValues(reaper.New)

// agent serves a socket as a machine serves its port, and gives a way to connect.
func agent(t *testing.T) (s *Service, powered <-chan struct{}, dial func() (guestpb.GuestService, func())) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rpc")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	r, err := children()
	if err != nil {
		t.Fatal(err)
	}
	ready, off := make(chan struct{}), make(chan struct{})
	close(ready)
	ring := logring.New()
	s = New(Config{
		Log: slog.New(slog.NewJSONHandler(ring, nil)), Ring: ring, Reaper: r, Streams: mux.NewHub(), Version: "1.2.3", Ready: ready,
		PowerOff: sync.OnceFunc(func() { close(off) }),
	})
	go func() { _ = s.Serve(session.NewAcceptor(&socketPort{listener: listener})) }()
	return s, off, func() (guestpb.GuestService, func()) {
		t.Helper()
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		nonce := "0123456789abcdef"
		_, _ = conn.Write([]byte("LCOWHELO" + nonce + "LCOWSTRT" + nonce))
		answer := make([]byte, 48)
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != "LCOWECHO"+nonce+"LCOWREDY"+nonce {
			t.Fatalf("%q %v", answer, err)
		}
		client := ttrpc.NewClient(conn)
		return guestpb.NewGuestClient(client), func() { _ = client.Close() }
	}
}

func details(t *testing.T, err error) *guestpb.GuestError {
	t.Helper()
	st, ok := status.FromError(err)
	if !ok || len(st.Details()) != 1 {
		t.Fatalf("no details in %v", err)
	}
	found, ok := st.Details()[0].(*guestpb.GuestError)
	if !ok {
		t.Fatalf("%T", st.Details()[0])
	}
	return found
}

func TestRequestsAreAnsweredOverOneSessionAfterAnother(t *testing.T) {
	_, _, dial := agent(t)
	for range 3 {
		guest, closeHost := dial()
		hello, err := guest.Hello(t.Context(), &guestpb.HelloRequest{})
		if err != nil || hello.ProtocolMajor != protocolMajor || hello.AgentVersion != "1.2.3" || hello.KernelRelease == "" {
			t.Fatal(hello, err)
		}
		closeHost()
	}
}

func TestErrorsCarryReasonErrnoAndSubject(t *testing.T) {
	_, _, dial := agent(t)
	guest, closeHost := dial()
	defer closeHost()
	_, err := guest.ReadFile(t.Context(), &guestpb.ReadFileRequest{Path: "/no/such/file"})
	if d := details(t, err); d.Reason != guestpb.GuestError_NO_SUCH_FILE || d.Errno != 2 || !strings.Contains(d.Subject, "no/such/file") {
		t.Fatal(d)
	}
	for _, call := range []struct {
		want guesterr.Reason
		call func() error
	}{
		{guestpb.GuestError_NO_SUCH_CONTAINER, func() error {
			_, err := guest.StartContainer(t.Context(), &guestpb.StartContainerRequest{ContainerId: "x"})
			return err
		}},
		{guestpb.GuestError_NO_SUCH_PROCESS, func() error {
			_, err := guest.WaitProcess(t.Context(), &guestpb.WaitProcessRequest{ExecId: "x"})
			return err
		}},
		{guestpb.GuestError_NO_SUCH_NAMESPACE, func() error {
			_, err := guest.RemoveNetworkNamespace(t.Context(), &guestpb.RemoveNetworkNamespaceRequest{NamespaceId: "x"})
			return err
		}},
		{guestpb.GuestError_COMMAND_NOT_FOUND, func() error {
			_, err := guest.Exec(t.Context(), &guestpb.ExecRequest{ExecId: "x", ProcessJson: []byte(`{"args":["no-such-program"]}`)})
			return err
		}},
	} {
		if d := details(t, call.call()); d.Reason != call.want {
			t.Errorf("%v, want %v", d, call.want)
		}
	}
}

func TestBadRequestsAreRefusedBeforeAnythingIsDone(t *testing.T) {
	_, _, dial := agent(t)
	guest, closeHost := dial()
	defer closeHost()
	for name, call := range map[string]func() error{
		"container id": func() error {
			_, err := guest.CreateContainer(t.Context(), &guestpb.CreateContainerRequest{ContainerId: "../x", SpecJson: []byte("{}")})
			return err
		},
		"relative root": func() error {
			_, err := guest.CreateContainer(t.Context(), &guestpb.CreateContainerRequest{ContainerId: "x", SpecJson: []byte(`{"root":{"path":"r"}}`)})
			return err
		},
		"specification": func() error {
			_, err := guest.CreateContainer(t.Context(), &guestpb.CreateContainerRequest{ContainerId: "x", SpecJson: []byte("no JSON")})
			return err
		},
		"terminal with standard error": func() error {
			_, err := guest.Exec(t.Context(), &guestpb.ExecRequest{ExecId: "x", ProcessJson: []byte(`{"terminal":true,"args":["sh"]}`), Stdio: &guestpb.Stdio{StderrStream: 1}})
			return err
		},
		"signal": func() error {
			_, err := guest.SignalProcess(t.Context(), &guestpb.SignalProcessRequest{ExecId: "x", Signal: 65})
			return err
		},
		"file mode": func() error {
			_, err := guest.WriteFile(t.Context(), &guestpb.WriteFileRequest{Path: "/x", Mode: 0o4755})
			return err
		},
		"namespace id": func() error {
			_, err := guest.AddNetworkNamespace(t.Context(), &guestpb.AddNetworkNamespaceRequest{NamespaceId: "a/b"})
			return err
		},
	} {
		if err := call(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProcessIsReservedWhileItIsStarted(t *testing.T) {
	s, _, dial := agent(t)
	guest, closeHost := dial()
	defer closeHost()
	if err := s.processes.reserve("taken"); err != nil {
		t.Fatal(err)
	}
	_, err := guest.Exec(t.Context(), &guestpb.ExecRequest{ExecId: "taken", ProcessJson: []byte(`{"args":["true"]}`)})
	if d := details(t, err); d.Reason != guestpb.GuestError_ALREADY_EXISTS {
		t.Fatal(d)
	}
	_, err = guest.WaitProcess(t.Context(), &guestpb.WaitProcessRequest{ExecId: "taken"})
	if d := details(t, err); d.Reason != guestpb.GuestError_NO_SUCH_PROCESS {
		t.Fatal(d)
	}
}

func TestPanicInOneRequestIsItsErrorOnly(t *testing.T) {
	s, _, dial := agent(t)
	guest, closeHost := dial()
	defer closeHost()
	s.containers = nil
	_, err := guest.ListContainers(t.Context(), &guestpb.ListContainersRequest{})
	if status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "ListContainers") {
		t.Fatal(err)
	}
	if _, err := guest.Hello(t.Context(), &guestpb.HelloRequest{}); err != nil {
		t.Fatal(err)
	}
}

func TestMachineGoesOffWhenNoHostComesWithinTheLease(t *testing.T) {
	_, powered, dial := agent(t)
	guest, closeHost := dial()
	if _, err := guest.SetOwner(t.Context(), &guestpb.SetOwnerRequest{LeaseMs: 200}); err != nil {
		t.Fatal(err)
	}
	closeHost()
	// A host in time keeps it on.
	guest, closeHost = dial()
	if _, err := guest.Hello(t.Context(), &guestpb.HelloRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-powered:
		t.Fatal("turned off with a host")
	case <-time.After(300 * time.Millisecond):
	}
	closeHost()
	select {
	case <-powered:
	case <-time.After(5 * time.Second):
		t.Fatal("still on")
	}
}

func TestShutdownAnswersBeforeThePowerGoes(t *testing.T) {
	_, powered, dial := agent(t)
	guest, closeHost := dial()
	defer closeHost()
	if _, err := guest.Shutdown(t.Context(), &guestpb.ShutdownRequest{}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-powered:
	case <-time.After(30 * time.Second):
		t.Fatal("still on")
	}
}

func TestRequestsOfASessionEndWithIt(t *testing.T) {
	s, _, dial := agent(t)
	guest, closeHost := dial()
	defer closeHost()
	if _, err := guest.Exec(t.Context(), &guestpb.ExecRequest{ExecId: "sleep", ProcessJson: []byte(`{"args":["sleep","1000"],"env":["PATH=/bin:/usr/bin"]}`)}); err != nil {
		if strings.Contains(err.Error(), "not permitted") {
			t.Skip("setgroups needs root")
		}
		t.Fatal(err)
	}
	defer func() {
		p, err := s.processes.get("sleep")
		if err == nil {
			_ = p.Signal(9)
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() {
		_, err := guest.WaitProcess(ctx, &guestpb.WaitProcessRequest{ExecId: "sleep"})
		waited <- err
	}()
	if _, err := guest.DeleteProcess(t.Context(), &guestpb.DeleteProcessRequest{ExecId: "sleep"}); details(t, err).Reason != guestpb.GuestError_WRONG_STATE {
		t.Fatal(err)
	}
	cancel()
	<-waited
	closeHost()
	again, closeAgain := dial()
	defer closeAgain()
	go func() {
		_, err := again.WaitProcess(context.Background(), &guestpb.WaitProcessRequest{ExecId: "sleep"})
		waited <- err
	}()
	if _, err := again.SignalProcess(t.Context(), &guestpb.SignalProcessRequest{ExecId: "sleep", Signal: 15, All: true}); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if _, err := again.DeleteProcess(t.Context(), &guestpb.DeleteProcessRequest{ExecId: "sleep"}); err != nil {
		t.Fatal(err)
	}
}

func TestIdsArePlainNames(t *testing.T) {
	for id, ok := range map[string]bool{
		"a": true, "A-b_c.9": true, "0": true, strings.Repeat("x", 128): true,
		"": false, ".": false, "..": false, "-x": false, "a/b": false, "a b": false, "é": false, "a\x00": false, strings.Repeat("x", 129): false,
	} {
		if err := checkID("id", id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}
