package storage

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const blockFolder = "/sys/block"

// How long a disk may stay away before its controllers are asked to look for it. A hot-added disk announces itself; one
// that was there at boot does not, when the kernel was told not to scan (scsi_mod.scan=manual).
const (
	// Target 0 of every controller, where the host puts its disks. Not sooner: a scan disturbs disks that are being added.
	quickScanAfter = 300 * time.Millisecond
	// All 256 targets of every controller: costs hundreds of milliseconds.
	fullScanAfter = 1500 * time.Millisecond
)

// lookInterval is the fall-back when no kernel event tells of a disk.
const lookInterval = 100 * time.Millisecond

// findDisk returns the name of the block device with that serial number, "" when there is none.
func findDisk(folder, serial string) (string, error) {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return "", err
	}
	for _, entry := range entries {
		if found := readSerial(filepath.Join(folder, entry.Name())); found != "" && found == serial {
			return entry.Name(), nil
		}
	}
	return "", nil
}

// readSerial reads the serial number of a block device, "" when it has none.
func readSerial(device string) string {
	// virtio-blk has it as an attribute of the disk.
	if text, err := os.ReadFile(filepath.Join(device, "serial")); err == nil {
		return strings.TrimSpace(string(text))
	}
	// SCSI has it on page 0x80 of the vital product data.
	page, err := os.ReadFile(filepath.Join(device, "device", "vpd_pg80"))
	if err != nil {
		return ""
	}
	return parseUnitSerial(page)
}

// The unit serial number page, SCSI Primary Commands 4 section 7.8.15: four bytes, of which the second is the page code
// and the last two the length, then the number, padded with spaces.
const (
	unitSerialPage   = 0x80
	unitSerialHeader = 4
)

func parseUnitSerial(page []byte) string {
	if len(page) < unitSerialHeader || page[1] != unitSerialPage {
		return ""
	}
	length := int(page[2])<<8 | int(page[3])
	number := page[unitSerialHeader:]
	return string(bytes.Trim(number[:min(length, len(number))], " \x00"))
}

// waitDisk returns the name of the block device with that serial number, waiting for it to appear as long as ctx lives.
func waitDisk(ctx context.Context, serial string) (string, error) {
	if name, err := findDisk(blockFolder, serial); err != nil || name != "" && hasSize(blockFolder, name) {
		return name, err
	}
	events, err := openEvents()
	if err != nil {
		return "", err
	}
	defer events.Close()
	begun := time.Now()
	quick, full := false, false
	for {
		// After the socket was opened, so that a disk that came in between is not missed.
		if name, err := findDisk(blockFolder, serial); err != nil || name != "" && hasSize(blockFolder, name) {
			return name, err
		}
		if err := ctx.Err(); err != nil {
			return "", err
		}
		wait := lookInterval
		switch away := time.Since(begun); {
		case !quick && away >= quickScanAfter:
			quick = true
			scanControllers("0 0 -")
			continue
		case !full && away >= fullScanAfter:
			full = true
			scanControllers("- - -")
			continue
		case !quick:
			wait = quickScanAfter - away
		}
		events.wait(wait)
	}
}

// ScanAtBoot finds the disks that were there when the machine started: a few milliseconds, while no disk is being added.
func ScanAtBoot() { scanControllers("0 0 -") }

// hasSize tells whether the kernel knows how large a disk is, and has it ask again if not. When many disks are attached at
// once, each gets so many unit attentions of the others that the kernel now and then gives up asking one and takes it for
// empty.
func hasSize(folder, name string) bool {
	device := filepath.Join(folder, name)
	size, err := os.ReadFile(filepath.Join(device, "size"))
	if err != nil || strings.TrimSpace(string(size)) != "0" {
		return true
	}
	_ = os.WriteFile(filepath.Join(device, "device", "rescan"), []byte("1"), 0)
	return false
}

// scanControllers has every SCSI host look for disks; a host that cannot is one without disks.
func scanControllers(what string) {
	files, _ := filepath.Glob("/sys/class/scsi_host/host*/scan")
	for _, file := range files {
		_ = os.WriteFile(file, []byte(what), 0)
	}
}

// ejectDisk has the kernel forget a SCSI disk. Other disks cannot be ejected from the inside.
func ejectDisk(name string) error {
	file := filepath.Join(blockFolder, name, "device", "delete")
	if _, err := os.Stat(file); os.IsNotExist(err) {
		return nil
	}
	return os.WriteFile(file, []byte("1"), 0)
}

// events is a socket on which the kernel tells of devices.
type events struct{ file *os.File }

func openEvents() (*events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, os.NewSyscallError("socket(NETLINK_KOBJECT_UEVENT)", err)
	}
	// Group 1 is the kernel's own events.
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &events{file: os.NewFile(uintptr(fd), "uevents")}, nil
}

func (e *events) Close() { _ = e.file.Close() }

// wait returns at the next event of a block device, or after the interval. Which event is not said: the caller looks.
func (e *events) wait(interval time.Duration) {
	_ = e.file.SetReadDeadline(time.Now().Add(interval))
	message := make([]byte, 8192)
	for {
		n, err := e.file.Read(message)
		if err != nil || bytes.Contains(message[:n], []byte("\x00SUBSYSTEM=block\x00")) {
			return
		}
	}
}

// withDisk retries an operation on a disk that has appeared but cannot be opened yet.
func withDisk(ctx context.Context, operation func() error) error {
	for wait := time.Millisecond; ; wait = min(wait*2, 50*time.Millisecond) {
		err := operation()
		if err != unix.ENXIO && err != unix.ENOENT && err != unix.ENOMEDIUM {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%w (gave up waiting for the disk)", err)
		}
	}
}
