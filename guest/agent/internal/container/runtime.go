package container

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/reaper"
)

const (
	runtimePath = "/usr/bin/crun"
	runtimeRoot = "/run/crun"
	// A runtime that does not answer in this time is killed. Under emulation a busy machine needs seconds.
	runtimeLimit = 2 * time.Minute
	// logLimit bounds what is read of the runtime's log.
	logLimit = 64 << 10
)

// runtime runs the OCI runtime, by argument vectors only.
type runtime struct {
	reaper *reaper.Reaper
	sealed func() string
}

func newRuntime(log *slog.Logger, r *reaper.Reaper) *runtime {
	return &runtime{reaper: r, sealed: sync.OnceValue(func() string {
		path, err := sealedCopy(runtimePath)
		if err != nil {
			log.Warn("copy the container runtime", "error", err)
			return runtimePath
		}
		return path
	})}
}

// sealedCopy copies a program into sealed memory and returns a path to execute it by. crun does the same at every start
// and executes itself again, so that a container cannot write to it through /proc/self/exe, unless it already runs from
// such a copy: half of the time that it takes. The seals are those that crun asks for.
func sealedCopy(program string) (string, error) {
	source, err := os.Open(program)
	if err != nil {
		return "", err
	}
	defer source.Close()
	fd, err := unix.MemfdCreate(filepath.Base(program), unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return "", os.NewSyscallError("memfd_create", err)
	}
	sealed := os.NewFile(uintptr(fd), program)
	if _, err := io.Copy(sealed, source); err != nil {
		_ = sealed.Close()
		return "", err
	}
	// Executing what is open for writing fails; this descriptor only reads.
	reader, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	_ = sealed.Close()
	if err != nil {
		return "", fmt.Errorf("seal the copy: %w", err)
	}
	return fmt.Sprintf("/proc/self/fd/%d", reader), nil
}

// invocation is one run of the runtime.
type invocation struct {
	args []string
	// Where the runtime writes its log.
	log string
	// Descriptors 0, 1, 2 and on; the null device for the first three when empty.
	files []uintptr
}

// run runs the runtime to its end. Its failure carries the reason that its log tells.
func (r *runtime) run(call invocation) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	files := call.files
	if files == nil {
		files = []uintptr{null.Fd(), null.Fd(), null.Fd()}
	}
	_ = os.Remove(call.log)
	argv := append([]string{runtimePath, "--root", runtimeRoot, "--cgroup-manager=cgroupfs", "--log", call.log, "--log-format=json"}, call.args...)
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, Files: files, Sys: &syscall.SysProcAttr{Setsid: true},
	}
	pid, status, err := r.reaper.Start(r.sealed(), argv, attr)
	if err != nil {
		return guesterr.Wrap(guestpb.GuestError_RUNTIME_FAILED, runtimePath, err, "execute the container runtime")
	}
	timer := time.NewTimer(runtimeLimit)
	defer timer.Stop()
	select {
	case s := <-status:
		if s.ExitCode() == 0 {
			return nil
		}
		return runtimeError(call.args[0], s.ExitCode(), lastMessage(call.log))
	case <-timer.C:
		_ = unix.Kill(pid, unix.SIGKILL)
		<-status
		return guesterr.New(guestpb.GuestError_RUNTIME_FAILED, call.args[0], "the container runtime did not end within %v:", runtimeLimit)
	}
}

// start has the init of a created container go on.
func (r *runtime) start(id, log string, hooks bool) error {
	// crun's init waits for a byte from this pipe, and all that `crun start` does besides is to run hooks. The pipe's
	// absence is also how crun knows that a container was started.
	fifo := filepath.Join(runtimeRoot, id, "exec.fifo")
	if hooks {
		return r.run(invocation{args: []string{"start", id}, log: log})
	}
	pipe, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		// Another version, or an init that is not there yet.
		return r.run(invocation{args: []string{"start", id}, log: log})
	}
	defer pipe.Close()
	if err := os.Remove(fifo); err != nil {
		return err
	}
	_, err = pipe.Write([]byte{0})
	return err
}

// lastMessage is the last line of the runtime's log, "" when there is none.
func lastMessage(path string) string {
	file, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer file.Close()
	message := ""
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, logLimit)
	for lines.Scan() {
		if text := logText(lines.Bytes()); text != "" {
			message = text
		}
	}
	return message
}

// logText is the text of one line of the runtime's JSON log, which a terminal's colours may surround.
func logText(line []byte) string {
	from, to := bytes.IndexByte(line, '{'), bytes.LastIndexByte(line, '}')
	if from < 0 || to < from {
		return ""
	}
	var entry struct {
		Message string `json:"msg"`
	}
	if json.Unmarshal(line[from:to+1], &entry) != nil {
		return ""
	}
	return strings.TrimSpace(entry.Message)
}

// runtimeError gives a failure of the runtime the reason that its message tells: crun ends a message with strerror's text.
func runtimeError(operation string, code uint32, message string) error {
	if message == "" {
		return guesterr.New(guestpb.GuestError_RUNTIME_FAILED, "", "the container runtime failed to %s with exit code %d", operation, code)
	}
	reason := guestpb.GuestError_RUNTIME_FAILED
	cause := errnoOf(message)
	switch {
	case strings.HasPrefix(message, "executable file") && strings.Contains(message, "not found"):
		reason = guestpb.GuestError_COMMAND_NOT_FOUND
	case strings.HasPrefix(message, "open executable"), isExecFailure(message):
		reason = guestpb.GuestError_COMMAND_NOT_EXECUTABLE
		if cause == unix.ENOENT || cause == unix.ENOTDIR {
			reason = guestpb.GuestError_COMMAND_NOT_FOUND
		}
	case strings.HasPrefix(message, "chdir"), strings.Contains(message, "cannot chdir"), strings.Contains(message, "set cwd"):
		reason = guestpb.GuestError_BAD_WORKING_DIRECTORY
	}
	return &guesterr.Error{Reason: reason, Message: fmt.Sprintf("%s container process", operation), Cause: &runtimeMessage{message, cause}}
}

// runtimeMessage is the runtime's own text, with the errno it stands for.
type runtimeMessage struct {
	text  string
	errno syscall.Errno
}

func (m *runtimeMessage) Error() string { return m.text }

func (m *runtimeMessage) Unwrap() error {
	if m.errno == 0 {
		return nil
	}
	return m.errno
}

// knownErrors are those that a reason depends on, as the C library words them.
var knownErrors = map[string]syscall.Errno{
	"No such file or directory": unix.ENOENT, "Not a directory": unix.ENOTDIR, "Permission denied": unix.EACCES,
	"Operation not permitted": unix.EPERM, "Exec format error": unix.ENOEXEC, "Is a directory": unix.EISDIR,
	"Too many levels of symbolic links": unix.ELOOP, "Invalid argument": unix.EINVAL, "No space left on device": unix.ENOSPC,
	"Cannot allocate memory": unix.ENOMEM, "Device or resource busy": unix.EBUSY, "Text file busy": unix.ETXTBSY,
	"Argument list too long": unix.E2BIG,
}

func errnoOf(message string) syscall.Errno {
	text := message[strings.LastIndex(message, ": ")+1:]
	return knownErrors[strings.TrimSpace(text)]
}

// execGate tells when the process that the runtime leaves behind executes the program: the runtime holds the writing end
// and has it closed on execution.
type execGate struct{ read, write *os.File }

func newExecGate() (*execGate, error) {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(ends[0], true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	return &execGate{read: os.NewFile(uintptr(ends[0]), "gate"), write: os.NewFile(uintptr(ends[1]), "gate")}, nil
}

// closeWriter closes the agent's copy of the writing end.
func (g *execGate) closeWriter() { _ = g.write.Close() }

func (g *execGate) close() {
	_ = g.write.Close()
	_ = g.read.Close()
}

// executeLimit is how long a process may take from its start to the execution of its program.
const executeLimit = time.Minute

// wait returns nil when the process has executed its program, errNeverExecuted when it ended before.
func (g *execGate) wait(p started) error {
	defer g.close()
	deadline := time.Now().Add(executeLimit)
	_ = g.read.SetReadDeadline(deadline)
	_, _ = g.read.Read(make([]byte, 1))
	// The end of file may come of the process' end as well, and a little before it is one; so look until it is decided.
	for wait := 100 * time.Microsecond; ; wait = min(wait*2, 10*time.Millisecond) {
		if executed, err := reaper.Executed(p.Pid()); err == nil && executed {
			return nil
		}
		select {
		case <-p.Exited():
			if p.NeverExecuted() {
				return errNeverExecuted
			}
			return nil
		case <-time.After(wait):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the program was not executed within %v", executeLimit)
		}
	}
}

var errNeverExecuted = errors.New("the program could not be executed")

type started interface {
	Pid() int
	Exited() <-chan struct{}
	NeverExecuted() bool
}

// executeError is the error of a program that could not be executed: what the runtime said in its log or, when that was
// closed to it, in place of the program's own errors.
func executeError(operation, log string, early []byte) error {
	messages := []string{lastMessage(log)}
	for line := range bytes.Lines(early) {
		messages = append(messages, logText(line), strings.TrimSpace(string(line)))
	}
	for _, message := range messages {
		if isExecFailure(message) {
			return runtimeError(operation, 0, message)
		}
	}
	return guesterr.New(guestpb.GuestError_COMMAND_NOT_EXECUTABLE, "", "%s container process: %v", operation, errNeverExecuted)
}

// isExecFailure recognises crun's words for a failed execve: of a container's init, and of an exec.
func isExecFailure(message string) bool {
	return strings.HasPrefix(message, "exec container process") || strings.HasPrefix(message, "exec: ")
}
