package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

const (
	// maxLayers is the kernel's OVL_MAX_STACK.
	maxLayers = 500
	// optionsLimit: mount(2) takes its options as one page.
	optionsLimit = 4095
)

// CombineLayers mounts an overlay of layers, with a scratch above them if there is one.
func (m *Manager) CombineLayers(r *guestpb.CombineLayersRequest) error {
	if len(r.LayerPaths) == 0 || len(r.LayerPaths) > maxLayers {
		return guesterr.Invalid("%d layers, 1 to %d are possible", len(r.LayerPaths), maxLayers)
	}
	if !filepath.IsLocal(r.ScratchDir) && r.ScratchDir != "" {
		return guesterr.New(guestpb.GuestError_PATH_ESCAPES, r.ScratchDir, "scratch folder is not below its scratch:")
	}
	for _, path := range r.LayerPaths {
		info, err := os.Stat(path)
		if err == nil && !info.IsDir() {
			err = unix.ENOTDIR
		}
		if err != nil {
			return guesterr.Wrap(guestpb.GuestError_NO_SUCH_FILE, path, err, "find layer")
		}
	}
	entry, err := m.reserve(r.RootfsPath)
	if err != nil {
		return err
	}
	entry.readOnly = r.ScratchPath == ""
	if entry.made, err = makeFolders(r.RootfsPath); err == nil {
		err = mountLayers(r)
	}
	if err != nil {
		entry.removeFolders()
		m.forget(entry)
		return err
	}
	m.settle(entry)
	return nil
}

func mountLayers(r *guestpb.CombineLayersRequest) error {
	if r.ScratchPath == "" && len(r.LayerPaths) == 1 {
		return bindReadOnly(r.LayerPaths[0], r.RootfsPath)
	}
	var upper, work string
	var made []string
	if r.ScratchPath != "" {
		base := filepath.Join(r.ScratchPath, r.ScratchDir)
		upper, work = filepath.Join(base, "upper"), filepath.Join(base, "work")
		for _, folder := range []string{upper, work} {
			more, err := makeFolders(folder)
			if err != nil {
				removeAll(made)
				return fmt.Errorf("make %s: %w", folder, err)
			}
			made = append(more, made...)
		}
	}
	if err := mountOverlay(r.LayerPaths, upper, work, r.RootfsPath); err != nil {
		removeAll(made)
		return guesterr.Wrap(guestpb.GuestError_MOUNT_FAILED, r.RootfsPath, err, "mount overlay of %d layers at", len(r.LayerPaths))
	}
	return nil
}

func removeAll(folders []string) {
	for _, folder := range folders {
		_ = os.Remove(folder)
	}
}

func bindReadOnly(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return guesterr.Wrap(guestpb.GuestError_MOUNT_FAILED, target, err, "bind the only layer to")
	}
	if err := unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		_ = unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		return guesterr.Wrap(guestpb.GuestError_MOUNT_FAILED, target, err, "make read-only")
	}
	return nil
}

// mountOverlay names every folder by a short link in a private folder, and mounts from there: neither the number of layers
// nor colons, commas and backslashes in their paths then matter to the one page of options.
func mountOverlay(layers []string, upper, work, target string) error {
	private, err := os.MkdirTemp("/run", "overlay-")
	if err != nil {
		return err
	}
	// Links and nothing else; the mount holds the folders themselves.
	defer os.RemoveAll(private)
	links, options := overlayOptions(layers, upper, work)
	for name, path := range links {
		if err := os.Symlink(path, filepath.Join(private, name)); err != nil {
			return err
		}
	}
	if len(options) > optionsLimit {
		return fmt.Errorf("%d bytes of options: %w", len(options), unix.E2BIG)
	}
	flags := uintptr(0)
	if upper == "" {
		flags = unix.MS_RDONLY
	}
	return inFolder(private, func() error { return unix.Mount("overlay", target, "overlay", flags, options) })
}

// overlayOptions gives each folder a name as short as can be and the mount options that use them. layers are top-most first.
func overlayOptions(layers []string, upper, work string) (links map[string]string, options string) {
	links = make(map[string]string, len(layers)+2)
	var text strings.Builder
	for i, path := range layers {
		name := strconv.FormatInt(int64(i), 36)
		links[name] = path
		if i == 0 {
			text.WriteString("lowerdir=")
		} else {
			text.WriteByte(':')
		}
		text.WriteString(name)
	}
	if upper != "" {
		// Upper case: numbers in base 36 never are.
		links["U"], links["W"] = upper, work
		text.WriteString(",upperdir=U,workdir=W")
	}
	return links, text.String()
}

// inFolder runs f on a thread of its own whose current folder is another one. The thread ends with it.
func inFolder(folder string, f func() error) error {
	result := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends a thread whose goroutine ends locked, and with it its folder.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			result <- os.NewSyscallError("unshare(CLONE_FS)", err)
			return
		}
		if err := unix.Chdir(folder); err != nil {
			result <- os.NewSyscallError("chdir", err)
			return
		}
		result <- f()
	}()
	return <-result
}

// RemoveLayers unmounts what CombineLayers has mounted.
func (m *Manager) RemoveLayers(rootfs string) error {
	entry, err := m.take(rootfs)
	if err != nil {
		return err
	}
	return m.remove(entry)
}
