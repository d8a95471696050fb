// Package files reads and writes below a root that its owner fills as it likes: the root file system of a container.
//
// Every path is resolved by openat2 with RESOLVE_IN_ROOT, in which a link, absolute or with any number of "..", stays
// below the root as if it were the root of the machine.
package files

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// Limit is the most bytes that a file read or written here may have.
const Limit = 1 << 20

// Root is an open folder below which paths are resolved.
type Root struct{ fd int }

// OpenRoot opens a folder; the path itself is trusted.
func OpenRoot(folder string) (*Root, error) {
	fd, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, pathError("open", folder, err)
	}
	return &Root{fd: fd}, nil
}

// Close closes the folder.
func (r *Root) Close() { _ = unix.Close(r.fd) }

// open resolves a path below the root.
func (r *Root) open(name string, flags int, mode uint32) (int, error) {
	// An absolute path is absolute to the root; an empty one is the root itself.
	if name = strings.TrimLeft(name, "/"); name == "" {
		name = "."
	}
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Mode:    uint64(mode),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(r.fd, name, how)
		switch err {
		case unix.EINTR, unix.EAGAIN:
			// EAGAIN: something was renamed while the path was resolved; the kernel asks to try again.
			continue
		case nil:
			return fd, nil
		}
		return -1, pathError("open", name, err)
	}
}

// regular opens a regular file. Opening never blocks and never has an effect on devices and pipes that lie there instead.
func (r *Root) regular(name string, flags int, mode uint32) (*os.File, fs.FileInfo, error) {
	fd, err := r.open(name, flags|unix.O_NONBLOCK|unix.O_NOCTTY, mode)
	if err != nil {
		return nil, nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = guesterr.Wrap(guestpb.GuestError_REASON_UNSPECIFIED, name, unix.EINVAL, "not a regular file")
	}
	if err != nil {
		_ = file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// ReadFile reads a file of at most limit bytes.
func (r *Root) ReadFile(name string, limit int) ([]byte, fs.FileMode, error) {
	file, info, err := r.regular(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, 0, err
	}
	defer file.Close()
	// Not the size that stat tells: files of /proc have none, others grow.
	content, err := io.ReadAll(io.LimitReader(file, int64(limit)+1))
	if err != nil {
		return nil, 0, pathError("read", name, err)
	}
	if len(content) > limit {
		return nil, 0, guesterr.New(guestpb.GuestError_TOO_LARGE, name, "file is longer than %d bytes:", limit)
	}
	return content, info.Mode(), nil
}

// WriteFile replaces the content of a file, which is made with mode when it does not exist.
func (r *Root) WriteFile(name string, content []byte, mode uint32) error {
	if len(content) > Limit {
		return guesterr.New(guestpb.GuestError_TOO_LARGE, name, "%d bytes are more than %d:", len(content), Limit)
	}
	// Not O_TRUNC: only after it is known to be a regular file.
	file, _, err := r.regular(name, unix.O_WRONLY|unix.O_CREAT, mode)
	if err != nil {
		return err
	}
	err = file.Truncate(0)
	if err == nil {
		_, err = file.Write(content)
	}
	if err == nil {
		err = file.Chmod(fs.FileMode(mode))
	}
	if closeErr := file.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return pathError("write", name, err)
	}
	return nil
}

// MkdirAll makes a folder and those above it that are missing.
func (r *Root) MkdirAll(name string, mode uint32) error {
	made := ""
	for element := range strings.SplitSeq(path.Clean("/" + name)[1:], "/") {
		parent := made
		made = path.Join(made, element)
		fd, err := r.open(made, unix.O_PATH|unix.O_DIRECTORY, 0)
		if err == nil {
			_ = unix.Close(fd)
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := r.mkdir(parent, element, mode); err != nil {
			return pathError("make folder", made, err)
		}
	}
	return nil
}

func (r *Root) mkdir(parent, element string, mode uint32) error {
	fd, err := r.open(parent, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// mkdirat follows no link in its last element: a link to nowhere is EEXIST.
	return unix.Mkdirat(fd, element, mode)
}

func pathError(operation, name string, err error) error {
	var known *guesterr.Error
	if errors.As(err, &known) {
		return err
	}
	reason := guestpb.GuestError_REASON_UNSPECIFIED
	switch {
	case errors.Is(err, fs.ErrNotExist):
		reason = guestpb.GuestError_NO_SUCH_FILE
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		reason = guestpb.GuestError_PATH_ESCAPES
	}
	return guesterr.Wrap(reason, name, err, "%s", operation)
}
