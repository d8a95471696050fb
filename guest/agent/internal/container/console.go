package container

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// consoleFolder is short, because the path of a socket is limited to 107 bytes.
const consoleFolder = "/run/lcow"

var consoleCounter atomic.Uint64

// consoleSocket is where the runtime sends the master of the terminal it makes in the container.
type consoleSocket struct {
	listener *net.UnixListener
	path     string
}

func newConsoleSocket() (*consoleSocket, error) {
	if err := os.MkdirAll(consoleFolder, 0o700); err != nil {
		return nil, err
	}
	path := filepath.Join(consoleFolder, "console-"+strconv.FormatUint(consoleCounter.Add(1), 10))
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return &consoleSocket{listener: listener, path: path}, nil
}

func (c *consoleSocket) close() { _ = c.listener.Close() }

// receiveLimit bounds the wait for a terminal that the runtime has already sent.
const receiveLimit = 10 * time.Second

// receive returns the master, non-blocking. Call it after the runtime has succeeded.
func (c *consoleSocket) receive() (*os.File, error) {
	deadline := time.Now().Add(receiveLimit)
	if err := c.listener.SetDeadline(deadline); err != nil {
		return nil, err
	}
	conn, err := c.listener.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(name, oob)
	if err != nil {
		return nil, fmt.Errorf("receive the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.Join(errors.New("receive the terminal: no descriptor came"), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.Join(errors.New("receive the terminal: no descriptor came"), err)
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		_ = unix.Close(fds[0])
		return nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}
