// Package boot makes a bare kernel into a utility VM: root, mounts, modules, loopback, control groups, limits.
package boot

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Limits of open files of the agent and the utility VM's processes.
const (
	openFiles     = 65536
	openFilesMost = 1048576
)

// Early does what must be done before a port can be opened. An error means that nothing can work.
func Early() error {
	// Files get exactly the modes that the code says.
	unix.Umask(0)
	// Pipes of many processes. What the agent starts inherits it; containers get limits of their own.
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: openFiles, Max: openFilesMost}); err != nil {
		return os.NewSyscallError("setrlimit(RLIMIT_NOFILE)", err)
	}
	if err := moveRoot(); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	return mountAll()
}

// Late does the rest, for which the host's first request waits. Failures are logged: what depends on them fails by itself,
// with a reason the host can see.
func Late(log *slog.Logger) {
	for _, step := range []struct {
		name string
		run  func() error
	}{
		{"bring up loopback", loopbackUp},
		{"delegate control groups", delegateControllers},
		{"set hostname", func() error { return unix.Sethostname([]byte("lcow")) }},
	} {
		if err := step.run(); err != nil {
			log.Error(step.name, "error", err)
		}
	}
}

// KernelRelease is uname -r.
func KernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}

// ID is the kernel's identity of this boot.
func ID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// UptimeNanos is the time since the kernel started.
func UptimeNanos() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return 0
	}
	return uint64(now.Nano())
}

// PowerOff syncs the disks and turns the machine off. It does not return.
func PowerOff(log *slog.Logger) {
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		log.Error("power off", "error", err)
	}
	select {}
}

// loopbackUp brings up "lo" of the current network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return os.NewSyscallError("ioctl(SIOCGIFFLAGS)", err)
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return os.NewSyscallError("ioctl(SIOCSIFFLAGS)", unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}

// CgroupRoot is where the one control group hierarchy (version 2) is mounted.
const CgroupRoot = "/sys/fs/cgroup"

// delegateControllers turns every controller on for the groups below the root.
func delegateControllers() error {
	content, err := os.ReadFile(CgroupRoot + "/cgroup.controllers")
	if err != nil {
		return err
	}
	var failures []error
	for _, controller := range strings.Fields(string(content)) {
		// One at a time: the kernel takes all of a write or nothing.
		err := os.WriteFile(CgroupRoot+"/cgroup.subtree_control", []byte("+"+controller), 0)
		if err != nil {
			failures = append(failures, fmt.Errorf("controller %s: %w", controller, err))
		}
	}
	return errors.Join(failures...)
}
