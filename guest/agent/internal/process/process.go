// Package process is a running program with its standard streams, whether in a container or in the utility VM itself.
//
// It outlives sessions: output waits in a bounded ring for a host to attach again, the exit is kept for whoever asks.
package process

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/mux"
	"lcow.dev/agent/internal/reaper"
)

// Streams are the host's streams for a process, nil for none.
type Streams struct {
	Stdin, Stdout, Stderr *mux.Stream
}

// Reset resets all of them.
func (s Streams) Reset(reason string) {
	for _, stream := range []*mux.Stream{s.Stdin, s.Stdout, s.Stderr} {
		if stream != nil {
			stream.Reset(mux.ResetCancelled, reason)
		}
	}
}

// Exit is how a process ended.
type Exit struct {
	// Status, or 128 + signal.
	Code      uint32
	At        time.Time
	OOMKilled bool
	// The program itself could not be executed; what was written came from its runtime.
	NeverExecuted bool
}

// Process is a program with its streams. Make it with New, start the program with ChildFiles or a console, then Begin.
type Process struct {
	// ID is the exec id; empty for the init of a container.
	ID string

	streams Streams
	child   [3]*os.File

	mu      sync.Mutex
	pid     int
	pidfd   int
	stdin   *Input
	stdout  *Output
	stderr  *Output
	console *os.File
	exited  chan struct{}
	exit    Exit
}

// New prepares a process: pipes for the streams the host wants, the null device for the others. With a terminal there are
// no pipes; SetConsole brings the streams.
func New(id string, streams Streams, terminal bool) (*Process, error) {
	p := &Process{ID: id, streams: streams, pidfd: -1, exited: make(chan struct{})}
	if terminal {
		return p, nil
	}
	for fd, stream := range []*mux.Stream{streams.Stdin, streams.Stdout, streams.Stderr} {
		if err := p.openPipe(fd, stream != nil); err != nil {
			p.closeAll()
			return nil, err
		}
	}
	return p, nil
}

func (p *Process) openPipe(fd int, wanted bool) error {
	if !wanted {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		p.child[fd] = null
		return err
	}
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	ours, theirs := ends[0], ends[1]
	if fd == 0 {
		ours, theirs = theirs, ours
	}
	// Only our end is non-blocking; programs do not expect it of theirs.
	if err := unix.SetNonblock(ours, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	file := os.NewFile(uintptr(ours), "pipe")
	p.child[fd] = os.NewFile(uintptr(theirs), "pipe")
	switch fd {
	case 0:
		p.stdin = newInput(file, false)
	case 1:
		p.stdout = newOutput(file, false)
	default:
		p.stderr = newOutput(file, false)
	}
	return nil
}

// ChildFiles are the descriptors 0, 1 and 2 for the program. CloseChildFiles must follow its start.
func (p *Process) ChildFiles() []uintptr {
	files := make([]uintptr, 0, len(p.child))
	for _, f := range p.child {
		files = append(files, f.Fd())
	}
	return files
}

// CloseChildFiles closes the agent's copies of the program's ends, so that ends of file come through.
func (p *Process) CloseChildFiles() {
	for fd, f := range p.child {
		if f != nil {
			_ = f.Close()
			p.child[fd] = nil
		}
	}
}

// SetConsole gives the process the master of its terminal, which must be non-blocking.
func (p *Process) SetConsole(master *os.File) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.console = master
	p.stdin = newInput(master, true)
	p.stdout = newOutput(master, true)
}

// Begin tells that the program was started, and awaits its end. oomKilled is asked at the exit. Join must follow.
func (p *Process) Begin(pid int, status <-chan reaper.Status, oomKilled func() bool) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		pidfd = -1
	}
	p.mu.Lock()
	p.pid, p.pidfd = pid, pidfd
	p.mu.Unlock()
	go func() {
		s := <-status
		exit := Exit{Code: s.ExitCode(), At: time.Now(), NeverExecuted: s.NeverExecuted}
		if oomKilled != nil {
			exit.OOMKilled = oomKilled()
		}
		p.mu.Lock()
		p.exit = exit
		if p.pidfd >= 0 {
			_ = unix.Close(p.pidfd)
			p.pidfd = -1
		}
		stdin := p.stdin
		p.mu.Unlock()
		if stdin != nil {
			stdin.close("the process has exited")
		}
		close(p.exited)
	}()
}

// Join joins the host's streams, once it is known that the program itself writes to them.
func (p *Process) Join() {
	streams := p.takeStreams()
	// The offsets of a process that has just begun are always in range.
	_, _ = p.Attach(streams, 0, 0)
}

// unsentLimit bounds the wait for the end of what an ended process wrote.
const unsentLimit = time.Second

// Unsent is the beginning of what a process that was never joined, and has ended, wrote to standard error or its terminal.
func (p *Process) Unsent() []byte {
	p.mu.Lock()
	output := p.stderr
	if p.console != nil {
		output = p.stdout
	}
	p.mu.Unlock()
	if output == nil {
		return nil
	}
	return output.beginning(unsentLimit)
}

func (p *Process) takeStreams() Streams {
	p.mu.Lock()
	defer p.mu.Unlock()
	streams := p.streams
	p.streams = Streams{}
	return streams
}

// Abandon releases what New prepared, when the program could not be started.
func (p *Process) Abandon(reason string) {
	p.closeAll()
	p.takeStreams().Reset(reason)
}

// Attach joins the host's streams: outputs from the given offsets on. It returns how much of standard input was taken.
func (p *Process) Attach(streams Streams, stdoutOffset, stderrOffset uint64) (stdinOffset uint64, err error) {
	p.mu.Lock()
	stdin, stdout, stderr := p.stdin, p.stdout, p.stderr
	p.mu.Unlock()
	for _, o := range []struct {
		name   string
		output *Output
		stream *mux.Stream
		offset uint64
	}{{"standard output", stdout, streams.Stdout, stdoutOffset}, {"standard error", stderr, streams.Stderr, stderrOffset}} {
		if o.stream == nil {
			continue
		}
		if o.output == nil {
			return 0, guesterr.New(guestpb.GuestError_WRONG_STATE, p.ID, "process was started without %s:", o.name)
		}
		if err := o.output.attach(o.stream, o.offset); err != nil {
			return 0, err
		}
	}
	if stdin == nil {
		if streams.Stdin != nil {
			return 0, guesterr.New(guestpb.GuestError_WRONG_STATE, p.ID, "process was started without standard input:")
		}
		return 0, nil
	}
	if streams.Stdin == nil {
		stdin.mu.Lock()
		defer stdin.mu.Unlock()
		return stdin.taken, nil
	}
	return stdin.attach(streams.Stdin), nil
}

// Pid is the program's pid in the utility VM.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// Exited is closed when the program has exited.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Running tells whether the program has not exited yet.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Wait returns how the program ended. Any number of callers may wait, before and after.
func (p *Process) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.exited:
		return p.exit, nil
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Signal sends a signal. It goes by pidfd, so never to another process that got the pid later.
func (p *Process) Signal(signal syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return guesterr.Wrap(guestpb.GuestError_WRONG_STATE, p.ID, syscall.ESRCH, "signal exited process")
	}
	if err := unix.PidfdSendSignal(p.pidfd, signal, nil, 0); err != nil {
		if err == unix.ESRCH {
			return guesterr.Wrap(guestpb.GuestError_WRONG_STATE, p.ID, err, "signal exited process")
		}
		return fmt.Errorf("signal process: %w", err)
	}
	return nil
}

// Resize sets the size of the terminal.
func (p *Process) Resize(rows, columns uint32) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.console == nil {
		return guesterr.New(guestpb.GuestError_WRONG_STATE, p.ID, "resize console: process has no terminal:")
	}
	return ResizeTerminal(p.console, rows, columns)
}

// Close forgets the process: its outputs are closed even if another program still holds them. What was read before is
// still sent.
func (p *Process) Close() { p.Abandon("the process was closed") }

func (p *Process) closeAll() {
	p.CloseChildFiles()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stdin != nil {
		p.stdin.close("the process was closed")
	}
	for _, o := range []*Output{p.stdout, p.stderr} {
		if o != nil {
			o.close()
		}
	}
}

// NeverExecuted tells whether the process ended before its program was executed.
func (p *Process) NeverExecuted() bool { return !p.Running() && p.exit.NeverExecuted }
