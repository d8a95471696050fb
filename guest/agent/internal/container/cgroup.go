package container

import (
	"bufio"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/boot"
)

// cgroupsPath is the control group of a container, as the specification names it.
func cgroupsPath(id string) string { return "/containers/" + id }

func cgroupFolder(id string) string { return boot.CgroupRoot + cgroupsPath(id) }

// oomKills is how many processes of a control group the kernel has killed for want of memory.
func oomKills(folder string) uint64 {
	content, err := os.ReadFile(filepath.Join(folder, "memory.events"))
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		if count, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			n, _ := strconv.ParseUint(count, 10, 64)
			return n
		}
	}
	return 0
}

// killAll kills every process of a control group and of those below it, without a chance for one to escape by forking.
func killAll(folder string) error {
	err := os.WriteFile(filepath.Join(folder, "cgroup.kill"), []byte("1"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// signalAll sends a signal to every process of a control group and of those below it.
func signalAll(folder string, signal syscall.Signal) error {
	if signal == unix.SIGKILL {
		return killAll(folder)
	}
	var failure error
	err := filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		pids, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return err
		}
		for text := range strings.FieldsSeq(string(pids)) {
			pid, err := strconv.Atoi(text)
			if err != nil || pid <= 0 {
				continue
			}
			if err := unix.Kill(pid, signal); err != nil && err != unix.ESRCH {
				failure = err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, failure)
}

// What is known of a signal for a process from one look at its state.
type signalFate int

const (
	// The kernel drops it.
	signalDropped signalFate = iota
	// A handler gets it, its default action happens, or the process waits for it.
	signalTaken
	// Blocked without a handler: it waits for sigwait, or for the end of the moment for which a shell blocks all signals
	// around fork, when it is dropped.
	signalBlocked
)

const (
	blockedLimit    = time.Second
	blockedInterval = 10 * time.Millisecond
)

// signalTelling sends a signal and tells whether the process gets it. The init of a pid namespace is spared those that it
// neither catches nor blocks, but for SIGKILL and SIGSTOP from outside. One that it goes on blocking counts as taken.
func signalTelling(pid int, signal syscall.Signal, send func() error) (delivered bool, err error) {
	// A handler is looked for first: it may take itself away while it runs.
	before := lookAtSignal(pid, signal)
	if err := send(); err != nil || before != signalBlocked {
		return before == signalTaken, err
	}
	for limit := time.Now().Add(blockedLimit); time.Now().Before(limit); time.Sleep(blockedInterval) {
		if now := lookAtSignal(pid, signal); now != signalBlocked {
			return now == signalTaken, nil
		}
	}
	return true, nil
}

func lookAtSignal(pid int, signal syscall.Signal) signalFate {
	if signal == unix.SIGKILL || signal == unix.SIGSTOP {
		return signalTaken
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return signalTaken
	}
	return fateOfSignal(status, signal)
}

func fateOfSignal(status []byte, signal syscall.Signal) signalFate {
	init := false
	var caught, blocked uint64
	lines := bufio.NewScanner(bytes.NewReader(status))
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "NSpid":
			// The pid in each namespace, the innermost last.
			pids := strings.Fields(value)
			init = len(pids) > 1 && pids[len(pids)-1] == "1"
		case "SigCgt":
			caught, _ = strconv.ParseUint(value, 16, 64)
		case "SigBlk":
			blocked, _ = strconv.ParseUint(value, 16, 64)
		}
	}
	bit := uint64(1) << (signal - 1)
	switch {
	case !init || caught&bit != 0:
		return signalTaken
	case blocked&bit != 0:
		return signalBlocked
	default:
		return signalDropped
	}
}
