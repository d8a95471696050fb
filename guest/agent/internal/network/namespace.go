// Package network makes network namespaces for containers and configures the adapters that the host attaches.
package network

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// namespaceFolder holds a mount of every namespace, as `ip netns` has it.
const namespaceFolder = "/run/netns"

// AddNamespace makes a network namespace with its loopback up, and returns its path.
func (m *Manager) AddNamespace(id string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, taken := m.namespaces[id]; taken {
		return "", guesterr.New(guestpb.GuestError_ALREADY_EXISTS, id, "create network namespace")
	}
	if err := os.MkdirAll(namespaceFolder, 0o755); err != nil {
		return "", err
	}
	path := filepath.Join(namespaceFolder, id)
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if err != nil {
		return "", err
	}
	_ = file.Close()
	if err := makeNamespace(path); err != nil {
		_ = os.Remove(path)
		return "", fmt.Errorf("create network namespace %q: %w", id, err)
	}
	m.namespaces[id] = map[string]string{}
	return path, nil
}

// makeNamespace makes a namespace on a thread of its own, which ends with it, and mounts it at path.
func makeNamespace(path string) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked, so that no other goroutine finds itself in the new namespace.
		runtime.LockOSThread()
		result <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("unshare(CLONE_NEWNET)", err)
			}
			if err := loopbackUp(); err != nil {
				return fmt.Errorf("bring up loopback: %w", err)
			}
			source := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
			return os.NewSyscallError("mount(MS_BIND)", unix.Mount(source, path, "", unix.MS_BIND, ""))
		}()
	}()
	return <-result
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// RemoveNamespace gives the namespace's adapters back to the utility VM and removes it.
func (m *Manager) RemoveNamespace(id string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	adapters, ok := m.namespaces[id]
	if !ok || id == "" {
		return guesterr.New(guestpb.GuestError_NO_SUCH_NAMESPACE, id, "remove network namespace")
	}
	for adapter, mac := range adapters {
		if err := m.giveBack(id, mac); err != nil {
			return fmt.Errorf("take adapter %q out of namespace %q: %w", adapter, id, err)
		}
		delete(adapters, adapter)
	}
	path := filepath.Join(namespaceFolder, id)
	if err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount namespace %q: %w", id, err)
	}
	delete(m.namespaces, id)
	return os.Remove(path)
}
