package process

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/reaper"
)

// DefaultPath is where programs of the utility VM are looked for when their environment does not say.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Program is what to run in the utility VM itself.
type Program struct {
	Args     []string
	Env      []string
	Cwd      string
	UID, GID uint32
	Groups   []uint32
	Terminal bool
	// Size of the terminal; zeroes leave the kernel's.
	Rows, Columns uint32
}

// Spawn starts a program of the utility VM, in a session of its own.
func Spawn(r *reaper.Reaper, id string, program Program, streams Streams) (*Process, error) {
	if program.Cwd == "" {
		program.Cwd = "/"
	}
	if info, err := os.Stat(program.Cwd); err != nil || !info.IsDir() {
		if err == nil {
			err = syscall.ENOTDIR
		}
		return nil, guesterr.Wrap(guestpb.GuestError_BAD_WORKING_DIRECTORY, program.Cwd, err, "change to working directory")
	}
	path, err := lookPath(program)
	if err != nil {
		return nil, err
	}
	p, err := New(id, streams, program.Terminal)
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{
		Dir: program.Cwd,
		Env: program.Env,
		Sys: &syscall.SysProcAttr{
			Setsid:     true,
			Credential: &syscall.Credential{Uid: program.UID, Gid: program.GID, Groups: program.Groups},
		},
	}
	if program.Terminal {
		master, terminal, err := OpenTerminal()
		if err != nil {
			p.Abandon("the process did not start")
			return nil, err
		}
		defer terminal.Close()
		_ = ResizeTerminal(master, program.Rows, program.Columns)
		p.SetConsole(master)
		fd := terminal.Fd()
		attr.Files = []uintptr{fd, fd, fd}
		attr.Sys.Setctty = true
	} else {
		attr.Files = p.ChildFiles()
	}
	pid, status, err := r.Start(path, program.Args, attr)
	p.CloseChildFiles()
	if err != nil {
		p.Abandon("the process did not start")
		return nil, ExecError(path, err)
	}
	p.Begin(pid, status, nil)
	p.Join()
	return p, nil
}

// ExecError gives a failed execve its reason.
func ExecError(path string, err error) error {
	reason := guestpb.GuestError_RUNTIME_FAILED
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		reason = guestpb.GuestError_COMMAND_NOT_FOUND
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR),
		errors.Is(err, syscall.ELIBBAD), errors.Is(err, syscall.ELOOP):
		reason = guestpb.GuestError_COMMAND_NOT_EXECUTABLE
	}
	return guesterr.Wrap(reason, path, err, "execute")
}

// lookPath finds the program as execvp does: a name with a slash is a path, another is looked for in PATH.
func lookPath(program Program) (string, error) {
	if len(program.Args) == 0 || program.Args[0] == "" {
		return "", guesterr.New(guestpb.GuestError_COMMAND_NOT_FOUND, "", "no command was given")
	}
	name := program.Args[0]
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			name = filepath.Join(program.Cwd, name)
		}
		return name, checkExecutable(name)
	}
	search := DefaultPath
	for _, variable := range program.Env {
		if value, ok := strings.CutPrefix(variable, "PATH="); ok {
			search = value
		}
	}
	var found error
	for _, folder := range filepath.SplitList(search) {
		if folder == "" {
			folder = program.Cwd
		}
		path := filepath.Join(folder, name)
		err := checkExecutable(path)
		if err == nil {
			return path, nil
		}
		if guesterr.ReasonOf(err) == guestpb.GuestError_COMMAND_NOT_EXECUTABLE && found == nil {
			found = err
		}
	}
	if found != nil {
		return "", found
	}
	return "", guesterr.Wrap(guestpb.GuestError_COMMAND_NOT_FOUND, name, syscall.ENOENT, "find executable in PATH")
}

func checkExecutable(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return ExecError(path, err)
	case info.IsDir():
		return ExecError(path, syscall.EISDIR)
	case info.Mode()&0o111 == 0:
		return ExecError(path, syscall.EACCES)
	}
	return nil
}
