package service

import (
	"context"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/files"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/process"
	"lcow.dev/agent/internal/stats"
)

// MountDisks mounts disks found by their serial numbers.
func (s *Service) MountDisks(ctx context.Context, r *guestpb.MountDisksRequest) (*guestpb.MountDisksResponse, error) {
	if err := s.storage.MountDisks(ctx, r); err != nil {
		return nil, err
	}
	return &guestpb.MountDisksResponse{}, nil
}

// UnmountDisks unmounts and ejects disks.
func (s *Service) UnmountDisks(_ context.Context, r *guestpb.UnmountDisksRequest) (*guestpb.UnmountDisksResponse, error) {
	if err := s.storage.UnmountDisks(r); err != nil {
		return nil, err
	}
	return &guestpb.UnmountDisksResponse{}, nil
}

// CombineLayers mounts an overlay.
func (s *Service) CombineLayers(_ context.Context, r *guestpb.CombineLayersRequest) (*guestpb.CombineLayersResponse, error) {
	if err := s.storage.CombineLayers(r); err != nil {
		return nil, err
	}
	return &guestpb.CombineLayersResponse{}, nil
}

// RemoveLayers unmounts an overlay.
func (s *Service) RemoveLayers(_ context.Context, r *guestpb.RemoveLayersRequest) (*guestpb.RemoveLayersResponse, error) {
	if err := s.storage.RemoveLayers(r.RootfsPath); err != nil {
		return nil, err
	}
	return &guestpb.RemoveLayersResponse{}, nil
}

// AddNetworkNamespace makes a network namespace.
func (s *Service) AddNetworkNamespace(_ context.Context, r *guestpb.AddNetworkNamespaceRequest) (*guestpb.AddNetworkNamespaceResponse, error) {
	if err := checkID("namespace_id", r.NamespaceId); err != nil {
		return nil, err
	}
	path, err := s.network.AddNamespace(r.NamespaceId)
	if err != nil {
		return nil, err
	}
	return &guestpb.AddNetworkNamespaceResponse{Path: path}, nil
}

// RemoveNetworkNamespace removes a network namespace.
func (s *Service) RemoveNetworkNamespace(_ context.Context, r *guestpb.RemoveNetworkNamespaceRequest) (*guestpb.RemoveNetworkNamespaceResponse, error) {
	if err := s.network.RemoveNamespace(r.NamespaceId); err != nil {
		return nil, err
	}
	return &guestpb.RemoveNetworkNamespaceResponse{}, nil
}

// AddNetworkAdapter configures a network adapter.
func (s *Service) AddNetworkAdapter(ctx context.Context, r *guestpb.AddNetworkAdapterRequest) (*guestpb.AddNetworkAdapterResponse, error) {
	if r.AdapterId == "" {
		return nil, guesterr.Invalid("adapter_id is empty")
	}
	if err := s.network.AddAdapter(ctx, r); err != nil {
		return nil, err
	}
	return &guestpb.AddNetworkAdapterResponse{}, nil
}

// RemoveNetworkAdapter takes a network adapter out of its namespace.
func (s *Service) RemoveNetworkAdapter(_ context.Context, r *guestpb.RemoveNetworkAdapterRequest) (*guestpb.RemoveNetworkAdapterResponse, error) {
	if err := s.network.RemoveAdapter(r); err != nil {
		return nil, err
	}
	return &guestpb.RemoveNetworkAdapterResponse{}, nil
}

// root opens the root file system of a container, or of the utility VM for an empty id.
func (s *Service) root(containerID string) (*files.Root, error) {
	if containerID == "" {
		return files.OpenRoot("/")
	}
	c, err := s.containers.Get(containerID)
	if err != nil {
		return nil, err
	}
	return files.OpenRoot(c.Rootfs())
}

// ReadFile reads a small file.
func (s *Service) ReadFile(_ context.Context, r *guestpb.ReadFileRequest) (*guestpb.ReadFileResponse, error) {
	root, err := s.root(r.ContainerId)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	limit := int(r.MaxBytes)
	if limit == 0 || limit > files.Limit {
		limit = files.Limit
	}
	content, mode, err := root.ReadFile(r.Path, limit)
	if err != nil {
		return nil, err
	}
	return &guestpb.ReadFileResponse{Content: content, Mode: uint32(mode.Perm())}, nil
}

// WriteFile writes a small file.
func (s *Service) WriteFile(_ context.Context, r *guestpb.WriteFileRequest) (*guestpb.WriteFileResponse, error) {
	mode := r.Mode
	if mode == 0 {
		mode = 0o644
	}
	if mode&^0o777 != 0 {
		return nil, guesterr.Invalid("mode %o has more than permission bits", mode)
	}
	root, err := s.root(r.ContainerId)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if r.MakeParents {
		if parent := r.Path[:max(strings.LastIndexByte(r.Path, '/'), 0)]; parent != "" {
			if err := root.MkdirAll(parent, 0o755); err != nil {
				return nil, err
			}
		}
	}
	if err := root.WriteFile(r.Path, r.Content, mode); err != nil {
		return nil, err
	}
	return &guestpb.WriteFileResponse{}, nil
}

// Stats tells what a container, or the utility VM, uses.
func (s *Service) Stats(_ context.Context, r *guestpb.StatsRequest) (*guestpb.StatsResponse, error) {
	if r.ContainerId == "" {
		return stats.Machine(), nil
	}
	c, err := s.containers.Get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	pid := 0
	if c.Init().Running() {
		pid = c.Init().Pid()
	}
	return stats.Container(c.Cgroup(), pid), nil
}

// drainLimit is how long the answer to Shutdown may take to leave the machine.
const drainLimit = 2 * time.Second

// Shutdown ends what runs, unmounts, answers, and turns the machine off once the answer has left it.
func (s *Service) Shutdown(ctx context.Context, r *guestpb.ShutdownRequest) (*guestpb.ShutdownResponse, error) {
	s.stopAll(context.WithoutCancel(ctx), time.Duration(r.GraceMs)*time.Millisecond)
	s.connMu.Lock()
	conn := s.conn
	s.connMu.Unlock()
	go func() {
		if conn != nil {
			select {
			case <-conn.DrainNextWrite():
			case <-conn.Done():
			case <-time.After(drainLimit):
			}
		}
		s.PowerOff()
	}()
	return &guestpb.ShutdownResponse{}, nil
}

// stopAll stops all containers and processes, and unmounts everything.
func (s *Service) stopAll(ctx context.Context, grace time.Duration) {
	var group sync.WaitGroup
	group.Add(1)
	go func() {
		defer group.Done()
		s.stopProcesses(ctx, grace)
	}()
	s.containers.StopAll(ctx, grace)
	group.Wait()
	s.storage.UnmountAll()
	unix.Sync()
}

// stopProcesses stops the processes of the utility VM itself.
func (s *Service) stopProcesses(ctx context.Context, grace time.Duration) {
	s.processes.mu.Lock()
	var running []*process.Process
	for _, p := range s.processes.byID {
		if p != nil && p.Running() {
			running = append(running, p)
		}
	}
	s.processes.mu.Unlock()
	if grace > 0 {
		for _, p := range running {
			_ = p.Signal(unix.SIGTERM)
		}
		graceful, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		for _, p := range running {
			_, _ = p.Wait(graceful)
		}
	}
	for _, p := range running {
		// Each leads a process group of its own.
		_ = unix.Kill(-p.Pid(), unix.SIGKILL)
	}
}

// runtimeVersionFile is where the image says which container runtime it holds.
const runtimeVersionFile = "/etc/lcow/runtime-version"

func runtimeVersion() string {
	text, err := os.ReadFile(runtimeVersionFile)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
