// Package reaper collects the exit statuses of all children of PID 1.
//
// The agent is the parent of what it starts itself and of every process whose parent died, such as the init of a
// container after its runtime has gone. One loop waits for any child and dispatches by pid, so nothing else in the agent
// may wait for a process.
package reaper

import (
	"bytes"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reaper dispatches wait statuses by pid. Create it with New, before any process is started.
type Reaper struct {
	mu      sync.Mutex
	waiting map[int]chan Status
	// Statuses of children nobody has claimed yet, kept only while holds is above zero.
	unclaimed map[int]Status
	holds     int
}

// Status is how a child ended.
type Status struct {
	syscall.WaitStatus
	// The child never executed a program of its own: it ended as a copy of the process that forked it.
	NeverExecuted bool
}

// New starts the loop. A process that is not PID 1 becomes a subreaper, so that tests see the same behaviour.
func New() (*Reaper, error) {
	if os.Getpid() != 1 {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, os.NewSyscallError("prctl(PR_SET_CHILD_SUBREAPER)", err)
		}
	}
	r := &Reaper{waiting: map[int]chan Status{}, unclaimed: map[int]Status{}}
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
		pid := r.peek()
		if pid <= 0 {
			return
		}
		ch, claimed := r.waiting[pid]
		var status Status
		if claimed || r.holds > 0 {
			executed, err := Executed(pid)
			status.NeverExecuted = err == nil && !executed
		}
		if _, err := syscall.Wait4(pid, &status.WaitStatus, 0, nil); err != nil {
			return
		}
		if claimed {
			delete(r.waiting, pid)
			ch <- status
		} else if r.holds > 0 {
			r.unclaimed[pid] = status
		}
	}
}

// peek returns the pid of a child that has exited and leaves it as it is, 0 when there is none.
func (r *Reaper) peek() int {
	// The head of siginfo_t as waitid fills it: signal, errno, code, padding, pid.
	var info struct {
		_   [4]int32
		pid int32
		_   [27]int32
	}
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
			unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
			continue
		case 0:
			return int(info.pid)
		}
		return 0
	}
}

// forkedNotExecuted is the kernel's PF_FORKNOEXEC, include/linux/sched.h.
const forkedNotExecuted = 0x40

// Executed tells whether a process has executed a program since it was forked. It works for one that has exited and is not
// yet reaped.
func Executed(pid int) (bool, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false, err
	}
	// The second field is the name in parentheses, which may hold any character; the ninth is the flags.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return false, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return flags&forkedNotExecuted == 0, err
}

// Start forks and executes. The channel receives the status once. The lock is held from before the fork until the pid is
// registered, so the status cannot be missed however short the child lives.
func (r *Reaper) Start(path string, argv []string, attr *syscall.ProcAttr) (int, <-chan Status, error) {
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
func (r *Reaper) Claim(pid int) <-chan Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if status, ok := r.unclaimed[pid]; ok {
		delete(r.unclaimed, pid)
		ch := make(chan Status, 1)
		ch <- status
		return ch
	}
	return r.register(pid)
}

func (r *Reaper) register(pid int) <-chan Status {
	ch := make(chan Status, 1)
	r.waiting[pid] = ch
	return ch
}

// ExitCode is the status as a shell tells it: the exit code, or 128 + signal.
func (status Status) ExitCode() uint32 {
	if status.Signaled() {
		return 128 + uint32(status.Signal())
	}
	return uint32(status.ExitStatus())
}
