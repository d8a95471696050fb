// Package container runs OCI containers with crun: bundles, life cycle, processes.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/files"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/process"
)

// bundlesFolder holds a folder for each container. The host mounts the container's scratch and root file system below it
// as well, so nothing here is ever removed recursively.
const bundlesFolder = "/run/gcs/c"

// Container is one container, from its creation to its deletion.
type Container struct {
	ID string

	runtime *runtime
	log     *slog.Logger
	claim   Claim
	bundle  string
	rootfs  string
	init    *process.Process
	// Whether the container's processes die with its init: it has a pid namespace of its own.
	ownPids bool
	// Whether the specification has hooks to run at the start.
	hooks bool

	// Serialises start and deletion.
	life sync.Mutex

	mu      sync.Mutex
	gate    *execGate
	started bool
	// By exec id; nil while one is started.
	execs map[string]*process.Process
}

func (c *Container) file(name string) string { return filepath.Join(c.bundle, name) }

// create writes the bundle and has the runtime create the container.
func (c *Container) create(r *guestpb.CreateContainerRequest, spec object, streams process.Streams) error {
	root, err := files.OpenRoot(c.rootfs)
	if err != nil {
		return err
	}
	defer root.Close()
	oci := spec.child("process")
	if err := completeProcess(oci, root, r.User, r.ConsoleSize); err != nil {
		return err
	}
	spec.child("linux")["cgroupsPath"] = cgroupsPath(c.ID)
	c.ownPids = hasOwnPids(spec)
	c.hooks = spec["hooks"] != nil
	config, err := spec.marshal()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.bundle, 0o711); err != nil {
		return err
	}
	if err := os.WriteFile(c.file("config.json"), config, 0o600); err != nil {
		return err
	}
	terminal := oci.boolean("terminal")
	p, gate, err := c.launch(launch{
		id: "", terminal: terminal, streams: streams, size: r.ConsoleSize, pidFile: c.file("pid"), log: c.file("log"),
		args: func(extra ...string) []string {
			return append(append([]string{"create", "--bundle", c.bundle}, extra...), c.ID)
		},
	})
	if err != nil {
		return err
	}
	c.init, c.gate = p, gate
	return nil
}

func hasOwnPids(spec object) bool {
	namespaces, _ := spec.child("linux")["namespaces"].([]any)
	for _, entry := range namespaces {
		if namespace, ok := entry.(map[string]any); ok && object(namespace).text("type") == "pid" && object(namespace).text("path") == "" {
			return true
		}
	}
	return false
}

// launch is what the creation of a container and an exec have in common.
type launch struct {
	id           string
	terminal     bool
	streams      process.Streams
	size         *guestpb.ConsoleSize
	pidFile, log string
	// args makes the runtime's arguments around the options given.
	args func(extra ...string) []string
}

// launch has the runtime make a process, and takes charge of it. The process may not have executed its program yet: the
// gate tells.
func (c *Container) launch(l launch) (_ *process.Process, _ *execGate, err error) {
	p, err := process.New(l.id, l.streams, l.terminal)
	if err != nil {
		return nil, nil, err
	}
	gate, err := newExecGate()
	if err != nil {
		p.Abandon("the process did not start")
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			gate.close()
			p.Abandon("the process did not start")
		}
	}()
	call := invocation{log: l.log}
	extra := []string{"--pid-file", l.pidFile}
	var socket *consoleSocket
	if l.terminal {
		if socket, err = newConsoleSocket(); err != nil {
			return nil, nil, err
		}
		defer socket.close()
		extra = append(extra, "--console-socket", socket.path)
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return nil, nil, err
		}
		defer null.Close()
		call.files = []uintptr{null.Fd(), null.Fd(), null.Fd()}
	} else {
		call.files = p.ChildFiles()
	}
	call.files = append(call.files, gate.write.Fd())
	call.args = l.args(extra...)
	_ = os.Remove(l.pidFile)
	release := c.runtime.reaper.Hold()
	defer release()
	oomBefore := oomKills(cgroupFolder(c.ID))
	err = c.runtime.run(call)
	p.CloseChildFiles()
	gate.closeWriter()
	if err != nil {
		return nil, nil, err
	}
	pid, err := readPid(l.pidFile)
	if err != nil {
		return nil, nil, err
	}
	if socket != nil {
		master, err := socket.receive()
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL)
			return nil, nil, err
		}
		_ = process.ResizeTerminal(master, l.size.GetRows(), l.size.GetColumns())
		p.SetConsole(master)
	}
	init := l.id == ""
	p.Begin(pid, c.runtime.reaper.Claim(pid), func() bool {
		killed := oomKills(cgroupFolder(c.ID)) > oomBefore
		if init && !c.ownPids {
			// They would otherwise live on, holding the container's output open.
			if err := killAll(cgroupFolder(c.ID)); err != nil {
				c.log.Warn("kill what the init left", "container", c.ID, "error", err)
			}
		}
		return killed
	})
	return p, gate, nil
}

func readPid(path string) (int, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	var pid int
	if _, err := fmt.Sscan(string(content), &pid); err != nil || pid <= 1 {
		return 0, fmt.Errorf("the runtime wrote the pid %q", content)
	}
	return pid, nil
}

// Rootfs is the container's root file system, a path of the utility VM.
func (c *Container) Rootfs() string { return c.rootfs }

// Cgroup is the folder of the container's control group.
func (c *Container) Cgroup() string { return cgroupFolder(c.ID) }

// Init is the container's first process.
func (c *Container) Init() *process.Process { return c.init }

// Start has the init execute its program.
func (c *Container) Start() error {
	c.life.Lock()
	defer c.life.Unlock()
	c.mu.Lock()
	gate := c.gate
	c.gate = nil
	c.mu.Unlock()
	if gate == nil || !c.init.Running() {
		return guesterr.New(guestpb.GuestError_WRONG_STATE, c.ID, "start container: it was started before or has stopped:")
	}
	if err := c.runtime.start(c.ID, c.file("start.log"), c.hooks); err != nil {
		gate.close()
		_ = c.kill()
		c.init.Abandon("the container did not start")
		return err
	}
	if err := gate.wait(c.init); err != nil {
		early := c.init.Unsent()
		_ = c.kill()
		c.init.Abandon("the container did not start")
		if errors.Is(err, errNeverExecuted) {
			return executeError("start", c.file("log"), early)
		}
		return err
	}
	c.mu.Lock()
	c.started = true
	c.mu.Unlock()
	c.init.Join()
	return nil
}

// State is where the container is in its life.
func (c *Container) State() guestpb.ContainerInfo_State {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.init.Running():
		return guestpb.ContainerInfo_STOPPED
	case c.started:
		return guestpb.ContainerInfo_RUNNING
	default:
		return guestpb.ContainerInfo_CREATED
	}
}

// Signal signals the init or an exec; delivered is false when the init is spared the signal.
func (c *Container) Signal(p *process.Process, signal syscall.Signal) (delivered bool, err error) {
	return signalTelling(p.Pid(), signal, func() error { return p.Signal(signal) })
}

// SignalAll signals every process of the container.
func (c *Container) SignalAll(signal syscall.Signal) error {
	if !c.init.Running() {
		return guesterr.New(guestpb.GuestError_WRONG_STATE, c.ID, "signal stopped container")
	}
	return signalAll(cgroupFolder(c.ID), signal)
}

func (c *Container) kill() error { return killAll(cgroupFolder(c.ID)) }

// Exec starts another process in the container.
func (c *Container) Exec(ctx context.Context, r *guestpb.ExecRequest) (*process.Process, error) {
	oci, err := parseObject("process_json", r.ProcessJson)
	if err != nil {
		return nil, err
	}
	if oci.boolean("terminal") && r.GetStdio().GetStderrStream() != 0 {
		return nil, guesterr.Invalid("a terminal has no standard error stream")
	}
	if c.State() != guestpb.ContainerInfo_RUNNING {
		return nil, guesterr.New(guestpb.GuestError_WRONG_STATE, c.ID, "exec in a container that does not run:")
	}
	c.mu.Lock()
	if _, taken := c.execs[r.ExecId]; taken {
		c.mu.Unlock()
		return nil, guesterr.New(guestpb.GuestError_ALREADY_EXISTS, r.ExecId, "create process")
	}
	c.execs[r.ExecId] = nil
	c.mu.Unlock()
	p, err := c.exec(ctx, r, oci)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		delete(c.execs, r.ExecId)
		return nil, err
	}
	c.execs[r.ExecId] = p
	return p, nil
}

func (c *Container) exec(ctx context.Context, r *guestpb.ExecRequest, oci object) (*process.Process, error) {
	root, err := files.OpenRoot(c.rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := completeProcess(oci, root, r.User, r.ConsoleSize); err != nil {
		return nil, err
	}
	config, err := oci.marshal()
	if err != nil {
		return nil, err
	}
	name := func(kind string) string { return c.file("exec-" + r.ExecId + "." + kind) }
	if err := os.WriteFile(name("json"), config, 0o600); err != nil {
		return nil, err
	}
	defer func() {
		for _, kind := range []string{"json", "pid", "log"} {
			_ = os.Remove(name(kind))
		}
	}()
	streams, err := c.claim(ctx, r.Stdio)
	if err != nil {
		return nil, err
	}
	p, gate, err := c.launch(launch{
		id: r.ExecId, terminal: oci.boolean("terminal"), streams: streams, size: r.ConsoleSize, pidFile: name("pid"), log: name("log"),
		args: func(extra ...string) []string {
			return append(append([]string{"exec", "--process", name("json"), "--detach"}, extra...), c.ID)
		},
	})
	if err != nil {
		streams.Reset("the process did not start")
		return nil, err
	}
	if err := gate.wait(p); err != nil {
		early := p.Unsent()
		_ = p.Signal(unix.SIGKILL)
		p.Abandon("the process did not start")
		if errors.Is(err, errNeverExecuted) {
			return nil, executeError("exec", name("log"), early)
		}
		return nil, err
	}
	p.Join()
	return p, nil
}

// Process finds the init, for an empty id, or an exec.
func (c *Container) Process(execID string) (*process.Process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[execID]
	if p == nil {
		return nil, guesterr.New(guestpb.GuestError_NO_SUCH_PROCESS, execID, "find process")
	}
	return p, nil
}

// DeleteProcess forgets an exited exec.
func (c *Container) DeleteProcess(execID string) error {
	if execID == "" {
		return guesterr.New(guestpb.GuestError_WRONG_STATE, c.ID, "the init goes with its container:")
	}
	p, err := c.Process(execID)
	if err != nil {
		return err
	}
	if p.Running() {
		return guesterr.New(guestpb.GuestError_WRONG_STATE, execID, "delete running process")
	}
	c.mu.Lock()
	delete(c.execs, execID)
	c.mu.Unlock()
	p.Close()
	return nil
}

// killLimit is how long a killed container may take to end.
const killLimit = 30 * time.Second

// stop ends the container: SIGTERM, the grace, SIGKILL. It returns when its init has ended.
func (c *Container) stop(ctx context.Context, grace time.Duration) error {
	if grace > 0 && c.init.Running() {
		_ = c.init.Signal(unix.SIGTERM)
		graceful, cancel := context.WithTimeout(ctx, grace)
		_, _ = c.init.Wait(graceful)
		cancel()
	}
	if err := c.kill(); err != nil {
		return fmt.Errorf("kill container %q: %w", c.ID, err)
	}
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	if _, err := c.init.Wait(ctx); err != nil {
		return fmt.Errorf("wait for the end of container %q: %w", c.ID, err)
	}
	return nil
}

// delete removes the stopped container's state and bundle.
func (c *Container) delete() error {
	err := c.runtime.run(invocation{args: []string{"delete", "--force", c.ID}, log: c.file("delete.log")})
	c.mu.Lock()
	execs := c.execs
	c.execs = map[string]*process.Process{}
	gate := c.gate
	c.gate = nil
	c.mu.Unlock()
	if gate != nil {
		gate.close()
	}
	c.init.Close()
	for _, p := range execs {
		if p != nil {
			p.Close()
		}
	}
	c.removeBundle()
	return err
}

// removeBundle removes the agent's files and the name files that the host wrote beside them for the container, nothing
// else: the host's mounts lie in the same folder.
func (c *Container) removeBundle() {
	for _, name := range []string{"config.json", "pid", "log", "start.log", "delete.log", "hostname", "hosts", "resolv.conf"} {
		_ = os.Remove(c.file(name))
	}
	_ = os.Remove(c.bundle)
}
