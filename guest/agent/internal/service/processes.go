package service

import (
	"context"
	"encoding/json"
	"sync"
	"syscall"

	"lcow.dev/agent/internal/account"
	"lcow.dev/agent/internal/container"
	"lcow.dev/agent/internal/files"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/process"
)

// processes are those of the utility VM itself, by exec id.
type processes struct {
	mu   sync.Mutex
	byID map[string]*process.Process
}

// ociProcess is the part of the OCI runtime specification's process that a process of the utility VM can have.
type ociProcess struct {
	Terminal    bool `json:"terminal"`
	ConsoleSize struct {
		Height uint32 `json:"height"`
		Width  uint32 `json:"width"`
	} `json:"consoleSize"`
	User struct {
		UID            uint32   `json:"uid"`
		GID            uint32   `json:"gid"`
		AdditionalGids []uint32 `json:"additionalGids"`
	} `json:"user"`
	Args []string `json:"args"`
	Env  []string `json:"env"`
	Cwd  string   `json:"cwd"`
}

func (s *Service) execInMachine(ctx context.Context, r *guestpb.ExecRequest) (*process.Process, error) {
	var oci ociProcess
	if err := json.Unmarshal(r.ProcessJson, &oci); err != nil {
		return nil, guesterr.Invalid("process_json: %v", err)
	}
	if oci.Terminal && r.GetStdio().GetStderrStream() != 0 {
		return nil, guesterr.Invalid("a terminal has no standard error stream")
	}
	program := process.Program{
		Args: oci.Args, Env: oci.Env, Cwd: oci.Cwd, UID: oci.User.UID, GID: oci.User.GID, Groups: oci.User.AdditionalGids,
		Terminal: oci.Terminal, Rows: oci.ConsoleSize.Height, Columns: oci.ConsoleSize.Width,
	}
	if size := r.ConsoleSize; size != nil {
		program.Rows, program.Columns = size.Rows, size.Columns
	}
	if r.User != "" {
		user, err := s.machineUser(r.User)
		if err != nil {
			return nil, err
		}
		program.UID, program.GID, program.Groups = user.UID, user.GID, user.Groups
	}
	if err := s.processes.reserve(r.ExecId); err != nil {
		return nil, err
	}
	streams, err := s.claim(ctx, r.Stdio)
	if err != nil {
		s.processes.remove(r.ExecId)
		return nil, err
	}
	p, err := process.Spawn(s.Reaper, r.ExecId, program, streams)
	if err != nil {
		streams.Reset("the process did not start")
		s.processes.remove(r.ExecId)
		return nil, err
	}
	s.processes.mu.Lock()
	defer s.processes.mu.Unlock()
	s.processes.byID[r.ExecId] = p
	return p, nil
}

// machineUser resolves a user in the files of the utility VM itself.
func (s *Service) machineUser(user string) (account.User, error) {
	root, err := s.root("")
	if err != nil {
		return account.User{}, err
	}
	defer root.Close()
	return account.Resolve(func(name string) ([]byte, error) {
		content, _, err := root.ReadFile(name, files.Limit)
		return content, err
	}, user)
}

// reserve takes an id, so that two requests cannot use it at once.
func (p *processes) reserve(id string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.byID[id]; taken {
		return guesterr.New(guestpb.GuestError_ALREADY_EXISTS, id, "create process")
	}
	p.byID[id] = nil
	return nil
}

func (p *processes) remove(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.byID, id)
}

func (p *processes) get(id string) (*process.Process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	found := p.byID[id]
	if found == nil {
		return nil, guesterr.New(guestpb.GuestError_NO_SUCH_PROCESS, id, "find process")
	}
	return found, nil
}

// find returns a process of a container or of the utility VM.
func (s *Service) find(containerID, execID string) (*process.Process, error) {
	if containerID == "" {
		return s.processes.get(execID)
	}
	c, err := s.containers.Get(containerID)
	if err != nil {
		return nil, err
	}
	return c.Process(execID)
}

// Exec starts a process.
func (s *Service) Exec(ctx context.Context, r *guestpb.ExecRequest) (*guestpb.ExecResponse, error) {
	if err := checkID("exec_id", r.ExecId); err != nil {
		return nil, err
	}
	if r.ContainerId == "" {
		p, err := s.execInMachine(ctx, r)
		if err != nil {
			return nil, err
		}
		return &guestpb.ExecResponse{Pid: uint32(p.Pid())}, nil
	}
	c, err := s.containers.Get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	p, err := c.Exec(ctx, r)
	if err != nil {
		return nil, err
	}
	return &guestpb.ExecResponse{Pid: uint32(p.Pid())}, nil
}

// AttachProcess joins streams to a running process again.
func (s *Service) AttachProcess(ctx context.Context, r *guestpb.AttachProcessRequest) (*guestpb.AttachProcessResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	streams, err := s.claim(ctx, r.Stdio)
	if err != nil {
		return nil, err
	}
	taken, err := p.Attach(streams, r.StdoutOffset, r.StderrOffset)
	if err != nil {
		streams.Reset("the request failed")
		return nil, err
	}
	return &guestpb.AttachProcessResponse{StdinOffset: taken}, nil
}

// WaitProcess answers at the exit.
func (s *Service) WaitProcess(ctx context.Context, r *guestpb.WaitProcessRequest) (*guestpb.WaitProcessResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &guestpb.WaitProcessResponse{
		ExitCode: exit.Code, ExitedAtUnixNanos: exit.At.UnixNano(), OomKilled: exit.OOMKilled,
	}, nil
}

// SignalProcess sends a signal.
func (s *Service) SignalProcess(_ context.Context, r *guestpb.SignalProcessRequest) (*guestpb.SignalProcessResponse, error) {
	if r.Signal == 0 || r.Signal > 64 {
		return nil, guesterr.Invalid("%d is no signal", r.Signal)
	}
	signal := syscall.Signal(r.Signal)
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	delivered := true
	switch {
	case r.ContainerId != "":
		var c *container.Container
		if c, err = s.containers.Get(r.ContainerId); err != nil {
			return nil, err
		}
		if r.All {
			err = c.SignalAll(signal)
		} else {
			delivered, err = c.Signal(p, signal)
		}
	case r.All && p.Running():
		// A process of the utility VM leads a group of its own.
		err = syscall.Kill(-p.Pid(), signal)
	default:
		err = p.Signal(signal)
	}
	if err != nil {
		return nil, err
	}
	return &guestpb.SignalProcessResponse{Delivered: delivered}, nil
}

// ResizeConsole sets the size of a process' terminal.
func (s *Service) ResizeConsole(_ context.Context, r *guestpb.ResizeConsoleRequest) (*guestpb.ResizeConsoleResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.Resize(r.GetSize().GetRows(), r.GetSize().GetColumns()); err != nil {
		return nil, err
	}
	return &guestpb.ResizeConsoleResponse{}, nil
}

// DeleteProcess forgets an exited process.
func (s *Service) DeleteProcess(_ context.Context, r *guestpb.DeleteProcessRequest) (*guestpb.DeleteProcessResponse, error) {
	if r.ContainerId != "" {
		c, err := s.containers.Get(r.ContainerId)
		if err == nil {
			err = c.DeleteProcess(r.ExecId)
		}
		if err != nil {
			return nil, err
		}
		return &guestpb.DeleteProcessResponse{}, nil
	}
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if p.Running() {
		return nil, guesterr.New(guestpb.GuestError_WRONG_STATE, r.ExecId, "delete running process")
	}
	s.processes.remove(r.ExecId)
	p.Close()
	return &guestpb.DeleteProcessResponse{}, nil
}

// checkID refuses ids that are not names of one path element of plain characters.
func checkID(field, id string) error {
	if id == "" || len(id) > 128 {
		return guesterr.Invalid("%s has %d characters, 1 to 128 are allowed", field, len(id))
	}
	for i := range len(id) {
		c := id[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '_' && c != '.' && c != '-') {
			return guesterr.Invalid("%s %q: only letters, digits, and after the first _ . - are allowed", field, id)
		}
	}
	return nil
}
