// Package service is the server of proto/guest.proto: it translates requests to the packages that do the work, and their
// errors to statuses.
package service

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"lcow.dev/agent/internal/boot"
	"lcow.dev/agent/internal/container"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/logring"
	"lcow.dev/agent/internal/mux"
	"lcow.dev/agent/internal/network"
	"lcow.dev/agent/internal/process"
	"lcow.dev/agent/internal/reaper"
	"lcow.dev/agent/internal/session"
	"lcow.dev/agent/internal/storage"
)

// Version of the contract. The host refuses another major one.
const (
	protocolMajor = 1
	protocolMinor = 0
)

// features are what a host may ask before it uses something that came after the first version.
var features = []string{"attach", "cgroup2", "eject", "log", "lease", "netns", "overlay", "pty", "renew", "stats"}

// claimLimit bounds the wait for a stream's OPEN, which travels on another port than the request that names it.
const claimLimit = 10 * time.Second

// Config is what the service works with.
type Config struct {
	Log     *slog.Logger
	Ring    *logring.Ring
	Reaper  *reaper.Reaper
	Streams *mux.Hub
	Version string
	// Ready is closed when the machine is ready for requests.
	Ready <-chan struct{}
	// PowerOff turns the machine off and does not return.
	PowerOff func()
}

// Service implements the contract.
type Service struct {
	Config
	processes  processes
	containers *container.Manager
	storage    *storage.Manager
	network    *network.Manager
	lease      lease

	connMu sync.Mutex
	conn   *session.Conn
}

// New makes the service.
func New(config Config) *Service {
	s := &Service{Config: config, storage: storage.NewManager(config.Log), network: network.NewManager()}
	s.containers = container.NewManager(config.Log, config.Reaper, s.claim)
	s.processes.byID = map[string]*process.Process{}
	s.lease.expired = func() {
		s.Log.Warn("no host within the lease: power off")
		s.stopAll(context.Background(), 0)
		s.PowerOff()
	}
	return s
}

// Serve answers the requests of one session after another until the port is gone for good.
func (s *Service) Serve(acceptor *session.Acceptor) error {
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(s.intercept))
	if err != nil {
		return err
	}
	guestpb.RegisterGuestService(server, s)
	return server.Serve(context.Background(), &listener{service: s, acceptor: acceptor})
}

// intercept waits until the machine is ready, and keeps a bug in one request from ending PID 1.
func (s *Service) intercept(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (response any, err error) {
	defer func() {
		if failure := recover(); failure != nil {
			s.Log.Error("panic in a request", "method", info.FullMethod, "panic", fmt.Sprint(failure), "stack", string(debug.Stack()))
			response, err = nil, status.Errorf(codes.Internal, "the agent failed in %s: %v", info.FullMethod, failure)
		}
	}()
	select {
	case <-s.Ready:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	begun := time.Now()
	response, err = method(ctx, unmarshal)
	attrs := []any{"method", info.FullMethod, "ms", float64(time.Since(begun).Microseconds()) / 1000}
	if err != nil {
		err = guesterr.Status(err)
		s.Log.Info("request failed", append(attrs, "error", err.Error())...)
	} else {
		s.Log.Debug("request", attrs...)
	}
	return response, err
}

// Hello tells what this agent is. It is answered when the machine is ready.
func (s *Service) Hello(_ context.Context, r *guestpb.HelloRequest) (*guestpb.HelloResponse, error) {
	s.Log.Info("host connected", "version", r.HostVersion)
	return &guestpb.HelloResponse{
		ProtocolMajor:  protocolMajor,
		ProtocolMinor:  protocolMinor,
		AgentVersion:   s.Version,
		KernelRelease:  boot.KernelRelease(),
		RuntimeVersion: runtimeVersion(),
		BootId:         boot.ID(),
		UptimeNanos:    boot.UptimeNanos(),
		Features:       features,
	}, nil
}

// Renew renews what a machine must not share with another one.
func (s *Service) Renew(_ context.Context, r *guestpb.RenewRequest) (*guestpb.RenewResponse, error) {
	if len(r.Entropy) > 0 {
		if err := boot.AddEntropy(r.Entropy); err != nil {
			return nil, fmt.Errorf("renew the random pool: %w", err)
		}
	}
	if r.WallClockUnixNanos != 0 {
		if err := boot.SetClock(r.WallClockUnixNanos); err != nil {
			return nil, fmt.Errorf("renew the clock: %w", err)
		}
	}
	if r.Hostname != "" {
		if err := boot.SetHostname(r.Hostname); err != nil {
			return nil, fmt.Errorf("renew the hostname: %w", err)
		}
	}
	if r.MachineId != "" {
		if err := boot.SetMachineID(r.MachineId); err != nil {
			return nil, fmt.Errorf("renew the machine id: %w", err)
		}
	}
	return &guestpb.RenewResponse{}, nil
}

// StreamLog follows the log until the host resets the stream or the session ends. It is answered at once.
func (s *Service) StreamLog(ctx context.Context, r *guestpb.StreamLogRequest) (*guestpb.StreamLogResponse, error) {
	streams, err := s.claim(ctx, &guestpb.Stdio{StdoutStream: r.Stream})
	if err != nil {
		return nil, err
	}
	stream := streams.Stdout
	if stream == nil {
		return nil, guesterr.Invalid("the request names no stream")
	}
	go func() {
		follow, cancel := context.WithCancel(context.Background())
		stream.Watch(nil, cancel)
		go func() {
			// The host's END means that it has read enough.
			for {
				if _, err := stream.Receive(); err != nil {
					if err == io.EOF {
						_ = stream.CloseWrite()
					}
					cancel()
					return
				}
			}
		}()
		_ = s.Ring.Follow(follow, stream)
	}()
	return &guestpb.StreamLogResponse{}, nil
}

// claim takes the streams that a request names.
func (s *Service) claim(ctx context.Context, stdio *guestpb.Stdio) (process.Streams, error) {
	ctx, cancel := context.WithTimeout(ctx, claimLimit)
	defer cancel()
	var streams process.Streams
	for _, wanted := range []struct {
		id uint32
		to **mux.Stream
	}{
		{stdio.GetStdinStream(), &streams.Stdin},
		{stdio.GetStdoutStream(), &streams.Stdout},
		{stdio.GetStderrStream(), &streams.Stderr},
	} {
		if wanted.id == 0 {
			continue
		}
		stream, err := s.Streams.Claim(ctx, wanted.id)
		if err != nil {
			streams.Reset("the request failed")
			return process.Streams{}, guesterr.Wrap(guestpb.GuestError_NO_SUCH_STREAM, fmt.Sprint(wanted.id), err, "claim stream")
		}
		*wanted.to = stream
	}
	return streams, nil
}
