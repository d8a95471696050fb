// Package storage mounts disks and combines them to root file systems.
//
// A disk is named by its serial number only: names like sda follow the order of discovery.
package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// defaultTimeout is how long MountDisks waits for devices when the host does not say.
const defaultTimeout = 10 * time.Second

// Manager mounts and remembers, so that a shutdown can unmount in reverse.
type Manager struct {
	log *slog.Logger

	mu sync.Mutex
	// In the order of mounting; a reserved target has no function yet.
	mounted []*mounted
}

type mounted struct {
	target   string
	readOnly bool
	// A link to the device, not a mount.
	link bool
	// Folders made for the target, innermost first.
	made []string
	busy bool
}

// NewManager makes a Manager.
func NewManager(log *slog.Logger) *Manager { return &Manager{log: log} }

// reserve takes a target, so that two requests cannot use it at once.
func (m *Manager) reserve(target string) (*mounted, error) {
	if !filepath.IsAbs(target) || filepath.Clean(target) != target || target == "/" {
		return nil, guesterr.Invalid("target %q is not an absolute, clean path below the root", target)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, other := range m.mounted {
		if other.target == target {
			return nil, guesterr.New(guestpb.GuestError_ALREADY_EXISTS, target, "something is mounted at")
		}
	}
	entry := &mounted{target: target, busy: true}
	m.mounted = append(m.mounted, entry)
	return entry, nil
}

// take finds a mounted target and reserves it for its removal.
func (m *Manager) take(target string) (*mounted, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, entry := range m.mounted {
		if entry.target != target {
			continue
		}
		if entry.busy {
			return nil, guesterr.New(guestpb.GuestError_WRONG_STATE, target, "another request works on")
		}
		entry.busy = true
		return entry, nil
	}
	return nil, guesterr.New(guestpb.GuestError_WRONG_STATE, target, "nothing is mounted at")
}

func (m *Manager) settle(entry *mounted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	entry.busy = false
}

func (m *Manager) forget(entry *mounted) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounted = slices.DeleteFunc(m.mounted, func(other *mounted) bool { return other == entry })
}

// MountDisks mounts all disks of the request or none.
func (m *Manager) MountDisks(ctx context.Context, r *guestpb.MountDisksRequest) error {
	timeout := time.Duration(r.TimeoutMs) * time.Millisecond
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var done []*mounted
	for _, disk := range r.Mounts {
		entry, err := m.mountDisk(ctx, disk)
		if err != nil {
			for _, entry := range slices.Backward(done) {
				err = errors.Join(err, m.remove(entry))
			}
			return err
		}
		done = append(done, entry)
	}
	for _, entry := range done {
		m.settle(entry)
	}
	return nil
}

func (m *Manager) mountDisk(ctx context.Context, disk *guestpb.DiskMount) (*mounted, error) {
	if disk.Serial == "" {
		return nil, guesterr.Invalid("a disk without a serial number cannot be found")
	}
	entry, err := m.reserve(disk.Target)
	if err != nil {
		return nil, err
	}
	entry.readOnly, entry.link = disk.ReadOnly, disk.BlockDevice
	if err := m.mountReserved(ctx, disk, entry); err != nil {
		entry.removeFolders()
		m.forget(entry)
		return nil, err
	}
	return entry, nil
}

func (m *Manager) mountReserved(ctx context.Context, disk *guestpb.DiskMount, entry *mounted) error {
	name, err := waitDisk(ctx, disk.Serial)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return guesterr.Wrap(guestpb.GuestError_NO_SUCH_DISK, disk.Serial, err, "wait for the disk with serial number")
	}
	if err != nil {
		return fmt.Errorf("find disk %q: %w", disk.Serial, err)
	}
	device := "/dev/" + name
	folder := disk.Target
	if disk.BlockDevice {
		folder = filepath.Dir(folder)
	}
	if entry.made, err = makeFolders(folder); err != nil {
		return err
	}
	if disk.BlockDevice {
		return os.Symlink(device, disk.Target)
	}
	kind := disk.FsType
	if kind == "" {
		kind = "ext4"
	}
	flags, data := mountOptions(disk.Options)
	if disk.ReadOnly {
		flags |= unix.MS_RDONLY
		if kind == "ext4" && !slices.Contains(data, "noload") {
			// A layer has no journal to replay, and one that had could not be written.
			data = append(data, "noload")
		}
	}
	err = withDisk(ctx, func() error { return unix.Mount(device, disk.Target, kind, flags, strings.Join(data, ",")) })
	if err != nil {
		return guesterr.Wrap(guestpb.GuestError_MOUNT_FAILED, disk.Serial, err, "mount %s at %s, disk", kind, disk.Target)
	}
	return nil
}

// mountOptions splits options into those that mount(2) takes as flags and those for the file system.
func mountOptions(options []string) (flags uintptr, data []string) {
	for _, option := range options {
		if flag, known := optionFlags[option]; known {
			flags |= flag
		} else {
			data = append(data, option)
		}
	}
	return flags, data
}

var optionFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
	"sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME,
	"relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME, "lazytime": unix.MS_LAZYTIME,
}

// UnmountDisks tries all and reports every failure.
func (m *Manager) UnmountDisks(r *guestpb.UnmountDisksRequest) error {
	var failures []error
	for _, disk := range r.Unmounts {
		if disk.Target != "" {
			entry, err := m.take(disk.Target)
			if err == nil {
				err = m.remove(entry)
			}
			if err != nil {
				// The kernel must not lose a disk that is still in use.
				failures = append(failures, err)
				continue
			}
		}
		if disk.Eject {
			if err := eject(disk.Serial); err != nil {
				failures = append(failures, err)
			}
		}
	}
	return errors.Join(failures...)
}

func eject(serial string) error {
	name, err := findDisk(blockFolder, serial)
	if err == nil && name == "" {
		return guesterr.New(guestpb.GuestError_NO_SUCH_DISK, serial, "eject disk")
	}
	if err == nil {
		err = ejectDisk(name)
	}
	if err != nil {
		return fmt.Errorf("eject disk %q: %w", serial, err)
	}
	return nil
}

// busyLimit is how long an unmount that finds the file system busy is tried again: a process that was killed lets go of
// it a little after its exit was reported.
const busyLimit = 2 * time.Second

// remove undoes one mount. A failure leaves it as it was.
func (m *Manager) remove(entry *mounted) error {
	var err error
	if entry.link {
		err = os.Remove(entry.target)
	} else {
		if !entry.readOnly {
			m.sync(entry.target)
		}
		if err = unmount(entry.target); err != nil {
			err = guesterr.Wrap(guestpb.GuestError_MOUNT_FAILED, entry.target, err, "unmount")
		}
	}
	if err != nil {
		m.settle(entry)
		return err
	}
	entry.removeFolders()
	m.forget(entry)
	return nil
}

func unmount(target string) error {
	deadline := time.Now().Add(busyLimit)
	for wait := time.Millisecond; ; wait = min(wait*2, 50*time.Millisecond) {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if err != unix.EBUSY || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

// sync writes a file system out before it is unmounted, so that a failure is seen.
func (m *Manager) sync(target string) {
	fd, err := unix.Open(target, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Syncfs(fd)
		_ = unix.Close(fd)
	}
	if err != nil {
		m.log.Error("sync before unmount", "target", target, "error", err)
	}
}

// UnmountAll unmounts everything in reverse order; what is busy is detached, its disk synced by the caller.
func (m *Manager) UnmountAll() {
	m.mu.Lock()
	all := slices.Clone(m.mounted)
	m.mounted = nil
	m.mu.Unlock()
	for _, entry := range slices.Backward(all) {
		if entry.link {
			continue
		}
		if err := unix.Unmount(entry.target, unix.UMOUNT_NOFOLLOW); err != nil {
			m.log.Warn("unmount at shutdown", "target", entry.target, "error", err)
			_ = unix.Unmount(entry.target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
	}
}

// makeFolders makes a folder and those above it, and returns the ones that it made, innermost first.
func makeFolders(folder string) (made []string, err error) {
	for at := folder; ; at = filepath.Dir(at) {
		if _, err := os.Lstat(at); err == nil {
			break
		} else if !os.IsNotExist(err) {
			return nil, err
		}
		made = append(made, at)
	}
	for i, at := range slices.Backward(made) {
		if err := os.Mkdir(at, 0o755); err != nil && !os.IsExist(err) {
			for _, at := range made[i+1:] {
				_ = os.Remove(at)
			}
			return nil, err
		}
	}
	return made, nil
}

// removeFolders removes the folders made for the target; one that others use by now stays.
func (e *mounted) removeFolders() {
	for _, folder := range e.made {
		if os.Remove(folder) != nil {
			return
		}
	}
}
