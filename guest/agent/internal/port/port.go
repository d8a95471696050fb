// Package port opens virtio-serial ports by name and keeps them under Go's poller.
package port

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const classFolder = "/sys/class/virtio-ports"

// discoverLimit bounds the wait for a port's name to appear; the driver learns it by messages after its probe.
const discoverLimit = 30 * time.Second

// hostPoll is the fall-back of WaitHost should the driver's wake-up be missed.
const hostPoll = 250 * time.Millisecond

// Port is an open virtio-serial port. A port can be opened once only, and a close discards what the host has sent, so the
// agent never closes one.
type Port struct {
	file *os.File
	raw  syscall.RawConn
}

// Open waits for the port of that name and opens it.
func Open(name string) (*Port, error) {
	deadline := time.Now().Add(discoverLimit)
	for wait := 2 * time.Millisecond; ; wait = min(wait*2, 50*time.Millisecond) {
		device, err := find(name)
		if err != nil {
			return nil, err
		}
		if device != "" {
			p, err := open(device)
			if err == nil || !os.IsNotExist(err) {
				return p, err
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("open port %q: no such virtio-serial port after %v", name, discoverLimit)
		}
		time.Sleep(wait)
	}
}

// find returns the device node of the port, "" when there is none yet.
func find(name string) (string, error) {
	names, err := filepath.Glob(classFolder + "/*/name")
	if err != nil {
		return "", err
	}
	for _, file := range names {
		content, err := os.ReadFile(file)
		if err == nil && strings.TrimSpace(string(content)) == name {
			return "/dev/" + filepath.Base(filepath.Dir(file)), nil
		}
	}
	return "", nil
}

func open(device string) (*Port, error) {
	// Not os.OpenFile: it puts only some kinds of file under the poller. A blocked write would not be released by a close.
	fd, err := unix.Open(device, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: device, Err: err}
	}
	file := os.NewFile(uintptr(fd), device)
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &Port{file: file, raw: raw}, nil
}

// Read reads what has arrived, at most 4 KiB at a time; io.EOF while no host is connected.
func (p *Port) Read(b []byte) (int, error) {
	n, err := p.file.Read(b)
	if err != nil && isGone(err) {
		return n, fmt.Errorf("read port: %w", err)
	}
	return n, err
}

// Write writes all of b. Without a host it waits for one, or the deadline.
func (p *Port) Write(b []byte) (int, error) { return p.file.Write(b) }

// SetReadDeadline sets the deadline of reads under way and to come.
func (p *Port) SetReadDeadline(t time.Time) error { return p.file.SetReadDeadline(t) }

// SetWriteDeadline sets the deadline of writes under way and to come.
func (p *Port) SetWriteDeadline(t time.Time) error { return p.file.SetWriteDeadline(t) }

// WaitHost returns when a host is connected. The driver reports a port without a host as readable at once, but writable
// only when the host has come, so this waits for writability and needs no polling.
func (p *Port) WaitHost() error {
	for {
		_ = p.file.SetWriteDeadline(time.Now().Add(hostPoll))
		connected := false
		err := p.raw.Write(func(fd uintptr) bool {
			connected = hostConnected(int(fd))
			return connected
		})
		_ = p.file.SetWriteDeadline(time.Time{})
		if connected {
			return nil
		}
		if err != nil && !os.IsTimeout(err) {
			return fmt.Errorf("wait for a host: %w", err)
		}
	}
}

func hostConnected(fd int) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLOUT}}
	for {
		if _, err := unix.Poll(fds, 0); err != unix.EINTR {
			return err == nil && fds[0].Revents&unix.POLLHUP == 0
		}
	}
}

// SetBlocking switches the device between returning when it has queued the bytes and when the host has taken them.
func (p *Port) SetBlocking(blocking bool) error {
	var err error
	if controlErr := p.raw.Control(func(fd uintptr) { err = unix.SetNonblock(int(fd), !blocking) }); controlErr != nil {
		return controlErr
	}
	return err
}

func isGone(err error) bool {
	return err != io.EOF && !os.IsTimeout(err)
}
