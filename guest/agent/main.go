// The guest agent of a utility VM: PID 1, and the server of proto/guest.proto.
//
// It boots the machine (package boot), opens the two virtio-serial ports (port), accepts sessions on them (session) and
// serves requests (service) and byte streams (mux) until the machine is turned off.
package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"

	containerdlog "github.com/containerd/log"
	"lcow.dev/agent/internal/boot"
	"lcow.dev/agent/internal/logring"
	"lcow.dev/agent/internal/mux"
	"lcow.dev/agent/internal/port"
	"lcow.dev/agent/internal/reaper"
	"lcow.dev/agent/internal/service"
	"lcow.dev/agent/internal/session"
	"lcow.dev/agent/internal/storage"
)

// version is set by the linker.
var version = "development"

// The names of the ports, docs/protocol.md.
const (
	requestsPort = "lcow.rpc"
	streamsPort  = "lcow.mux"
)

// Collections are dear under emulation and the heap is small: few of them, but a bound below what a small machine has.
const (
	gcPercent   = 400
	memoryLimit = 64 << 20
	maxThreads  = 2
)

func init() {
	// Keeps the main thread for main alone. Goroutines that change their thread's namespaces or folder and end with it
	// must not do so on the thread that /proc/1 describes.
	runtime.LockOSThread()
}

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintf(os.Stderr, "lcow agent %s: runs as PID 1 of a utility VM only\n", version)
		os.Exit(2)
	}
	runtime.GOMAXPROCS(min(runtime.NumCPU(), maxThreads))
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)

	// The ttrpc library tells the console of every host that goes away.
	containerdlog.L.Logger.SetOutput(io.Discard)

	if err := boot.Early(); err != nil {
		fmt.Fprintln(os.Stderr, "lcow-agent: boot:", err)
	}
	ring := logring.New()
	log := logring.Logger(ring)
	if err := run(log, ring); err != nil {
		log.Error("the agent cannot go on", "error", err)
	}
	boot.PowerOff(log)
}

// run serves the ports; it returns only when one is gone for good.
func run(log *slog.Logger, ring *logring.Ring) error {
	children, err := reaper.New()
	if err != nil {
		return err
	}
	ready := make(chan struct{})
	go func() {
		boot.LoadModules(log)
		storage.ScanAtBoot()
		boot.Late(log)
		log.Info("ready", "version", version, "kernel", boot.KernelRelease(), "uptimeMs", boot.UptimeNanos()/1e6)
		close(ready)
	}()
	hub := mux.NewHub()
	agent := service.New(service.Config{
		Log:      log,
		Ring:     ring,
		Reaper:   children,
		Streams:  hub,
		Version:  version,
		Ready:    ready,
		PowerOff: func() { boot.PowerOff(log) },
	})
	failure := make(chan error, 2)
	go func() {
		requests, err := port.Open(requestsPort)
		if err == nil {
			err = agent.Serve(session.NewAcceptor(requests))
		}
		failure <- err
	}()
	go func() {
		streams, err := port.Open(streamsPort)
		if err == nil {
			err = serveStreams(log, hub, session.NewAcceptor(streams))
		}
		failure <- err
	}()
	return <-failure
}

func serveStreams(log *slog.Logger, hub *mux.Hub, acceptor *session.Acceptor) error {
	for {
		conn, err := acceptor.Accept()
		if err != nil {
			return err
		}
		if err := hub.Serve(conn); err != nil {
			log.Warn("the session of the multiplexer ended", "error", err)
		}
		_ = conn.Close()
	}
}
