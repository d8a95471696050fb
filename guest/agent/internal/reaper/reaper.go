// Package reaper collects the exit statuses of all children of PID 1.
//
// The agent is the parent of what it starts itself and of every process whose parent died, such as the init of a
// container after its runtime has gone. One loop waits for any child and dispatches by pid, so nothing else in the agent
// may wait for a process.
package reaper

import (
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper dispatches wait statuses by pid. Create it with New, before any process is started.
type Reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
	// Statuses of children nobody has claimed yet, kept only while holds is above zero.
	unclaimed map[int]syscall.WaitStatus
	holds     int
}

// New starts the loop. A process that is not PID 1 becomes a subreaper, so that tests see the same behaviour.
func New() (*Reaper, error) {
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", err)
		}
	}
	r := &Reaper{waiting: map[int]chan syscall.WaitStatus{}, unclaimed: map[int]syscall.WaitStatus{}}
	// Capacity 1: a signal that arrives while one is pending needs no second pass, each pass collects all there are.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for {
			r.collect()
			<-signals
		}
	}()
	return r, nil
}

// collect takes the statuses of all children that have exited.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if ch, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			ch <- status
		} else if r.holds > 0 {
			r.unclaimed[pid] = status
		}
	}
}

// Start forks and executes. The channel receives the status once. The lock is held from before the fork until the pid is
// registered, so the status cannot be missed however short the child lives.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := syscall.ForkExec(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	return pid, r.register(pid), nil
}

// Hold keeps the statuses of unknown children until release is called: between the start of a container runtime and the
// Claim of the process it leaves behind.
func (r *Reaper) Hold() (release func()) {
	r.mu.Lock()
	r.holds++
	r.mu.Unlock()
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.holds--; r.holds == 0 {
			clear(r.unclaimed)
		}
	})
}

// Claim asks for the status of a process that will be, or already is, a child of the agent. Call it under a Hold that
// began before the process did.
func (r *Reaper) Claim(pid int) <-chan syscall.WaitStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	if status, ok := r.unclaimed[pid]; ok {
		delete(r.unclaimed, pid)
		ch := make(chan syscall.WaitStatus, 1)
		ch <- status
		return ch
	}
	return r.register(pid)
}

func (r *Reaper) register(pid int) <-chan syscall.WaitStatus {
	ch := make(chan syscall.WaitStatus, 1)
	r.waiting[pid] = ch
	return ch
}

// ExitCode is the status as a shell tells it: the exit code, or 128 + signal.
func ExitCode(status syscall.WaitStatus) uint32 {
	if status.Signaled() {
		return 128 + uint32(status.Signal())
	}
	return uint32(status.ExitStatus())
}
