package reaper

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var shared = sync.OnceValues(New)

func reaper(t *testing.T) *Reaper {
	t.Helper()
	r, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wait(t *testing.T, ch <-chan Status) Status {
	t.Helper()
	select {
	case status := <-ch:
		return status
	case <-time.After(10 * time.Second):
		t.Fatal("no status came")
		return Status{}
	}
}

func sh(t *testing.T, r *Reaper, script string, files ...uintptr) (int, <-chan Status) {
	t.Helper()
	pid, ch, err := r.Start("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: files})
	if err != nil {
		t.Fatal(err)
	}
	return pid, ch
}

func TestEveryChildsStatusArrivesHoweverShortItLives(t *testing.T) {
	r := reaper(t)
	var group sync.WaitGroup
	for i := range 64 {
		group.Add(1)
		go func() {
			defer group.Done()
			_, ch := sh(t, r, "exit "+string(rune('0'+i%10)))
			if status := wait(t, ch); status.ExitCode() != uint32(i%10) || status.NeverExecuted {
				t.Error(i, status)
			}
		}()
	}
	group.Wait()
}

func TestSignalsBecome128AndTheirNumber(t *testing.T) {
	_, ch := sh(t, reaper(t), "kill -9 $$")
	if code := wait(t, ch).ExitCode(); code != 137 {
		t.Fatal(code)
	}
}

// orphan starts a shell that runs a script in the background and exits, and returns the pid it left behind, which becomes
// a child of the test program. The script can read its standard input to wait for end, which is not called before.
func orphan(t *testing.T, r *Reaper, script string) (pid int, end func()) {
	t.Helper()
	input, gate, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer input.Close()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	_, ch := sh(t, r, script+" <&4 & echo $! >&3", 0, 1, 2, write.Fd(), input.Fd())
	_ = write.Close()
	if _, err := fmt.Fscan(read, &pid); err != nil {
		t.Fatal(err)
	}
	wait(t, ch)
	return pid, func() { _ = gate.Close() }
}

func TestOrphanCanBeClaimedAfterItsEnd(t *testing.T) {
	r := reaper(t)
	release := r.Hold()
	defer release()
	pid, end := orphan(t, r, "sh -c 'read x; exit 9'")
	end()
	for ended := false; !ended; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		_, ended = r.unclaimed[pid]
		r.mu.Unlock()
	}
	if status := wait(t, r.Claim(pid)); status.ExitCode() != 9 || status.NeverExecuted {
		t.Fatal(status)
	}
}

func TestUnknownChildrenAreForgottenWithTheLastHold(t *testing.T) {
	r := reaper(t)
	first, second := r.Hold(), r.Hold()
	pid, end := orphan(t, r, "sh -c 'read x'")
	end()
	first()
	first()
	for ended := false; !ended; time.Sleep(time.Millisecond) {
		r.mu.Lock()
		_, ended = r.unclaimed[pid]
		r.mu.Unlock()
	}
	second()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.unclaimed) != 0 || r.holds != 0 {
		t.Fatal(r.unclaimed, r.holds)
	}
}

func TestForkThatNeverExecutedIsTold(t *testing.T) {
	r := reaper(t)
	release := r.Hold()
	defer release()
	// A subshell is a fork that executes nothing.
	pid, end := orphan(t, r, "(read x)")
	defer end()
	if executed, err := Executed(pid); err != nil || executed {
		t.Fatal(executed, err)
	}
	status := r.Claim(pid)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if s := wait(t, status); s.ExitCode() != 137 || !s.NeverExecuted {
		t.Fatal(s)
	}
	if executed, err := Executed(unix.Getpid()); err != nil || !executed {
		t.Fatal(executed, err)
	}
}
