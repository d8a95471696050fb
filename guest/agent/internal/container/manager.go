package container

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
	"lcow.dev/agent/internal/process"
	"lcow.dev/agent/internal/reaper"
)

// Claim takes the streams that a request names.
type Claim func(context.Context, *guestpb.Stdio) (process.Streams, error)

// Manager holds the containers of the utility VM.
type Manager struct {
	log     *slog.Logger
	runtime *runtime
	claim   Claim

	mu sync.Mutex
	// nil while one is created.
	containers map[string]*Container
}

// NewManager makes a Manager.
func NewManager(log *slog.Logger, r *reaper.Reaper, claim Claim) *Manager {
	return &Manager{log: log, runtime: newRuntime(log, r), claim: claim, containers: map[string]*Container{}}
}

// Create creates a container, its init waiting to be started.
func (m *Manager) Create(ctx context.Context, r *guestpb.CreateContainerRequest) (*Container, error) {
	spec, err := parseObject("spec_json", r.SpecJson)
	if err != nil {
		return nil, err
	}
	rootfs, err := rootPath(spec)
	if err != nil {
		return nil, err
	}
	if spec.child("process").boolean("terminal") && r.GetStdio().GetStderrStream() != 0 {
		return nil, guesterr.Invalid("a terminal has no standard error stream")
	}
	m.mu.Lock()
	if _, taken := m.containers[r.ContainerId]; taken {
		m.mu.Unlock()
		return nil, guesterr.New(guestpb.GuestError_ALREADY_EXISTS, r.ContainerId, "create container")
	}
	m.containers[r.ContainerId] = nil
	m.mu.Unlock()
	c := &Container{
		ID: r.ContainerId, runtime: m.runtime, log: m.log, claim: m.claim, rootfs: rootfs, execs: map[string]*process.Process{},
		bundle: filepath.Join(bundlesFolder, r.ContainerId),
	}
	streams, err := m.claim(ctx, r.Stdio)
	if err == nil {
		if err = c.create(r, spec, streams); err != nil {
			streams.Reset("the container was not created")
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		c.removeBundle()
		delete(m.containers, r.ContainerId)
		return nil, err
	}
	m.containers[r.ContainerId] = c
	return c, nil
}

// Get finds a container.
func (m *Manager) Get(id string) (*Container, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.containers[id]
	if c == nil {
		return nil, guesterr.New(guestpb.GuestError_NO_SUCH_CONTAINER, id, "find container")
	}
	return c, nil
}

// Delete removes a stopped container, or with force any.
func (m *Manager) Delete(ctx context.Context, id string, force bool) error {
	c, err := m.Get(id)
	if err != nil {
		return err
	}
	if !force && c.init.Running() {
		return guesterr.New(guestpb.GuestError_WRONG_STATE, id, "delete container that has not stopped:")
	}
	// Even without a running init, others of the container may be left.
	if err := c.stop(ctx, 0); err != nil {
		return err
	}
	c.life.Lock()
	defer c.life.Unlock()
	if current, err := m.Get(id); err != nil || current != c {
		return guesterr.New(guestpb.GuestError_NO_SUCH_CONTAINER, id, "find container")
	}
	err = c.delete()
	m.mu.Lock()
	delete(m.containers, id)
	m.mu.Unlock()
	if err != nil {
		return fmt.Errorf("delete container %q: %w", id, err)
	}
	return nil
}

// List tells about all containers, in the order of their ids.
func (m *Manager) List() []*guestpb.ContainerInfo {
	infos := []*guestpb.ContainerInfo{}
	for _, c := range m.all() {
		info := &guestpb.ContainerInfo{ContainerId: c.ID, State: c.State(), Pid: uint32(c.init.Pid())}
		if !c.init.Running() {
			// Exited: answers at once.
			exit, _ := c.init.Wait(context.Background())
			info.ExitCode = exit.Code
		}
		c.mu.Lock()
		for id, p := range c.execs {
			if p != nil {
				info.ExecIds = append(info.ExecIds, id)
			}
		}
		c.mu.Unlock()
		slices.Sort(info.ExecIds)
		infos = append(infos, info)
	}
	return infos
}

// StopAll stops all containers at the same time.
func (m *Manager) StopAll(ctx context.Context, grace time.Duration) {
	var group sync.WaitGroup
	for _, c := range m.all() {
		group.Add(1)
		go func() {
			defer group.Done()
			if err := c.stop(ctx, grace); err != nil {
				m.log.Error("stop container", "error", err)
			}
		}()
	}
	group.Wait()
}

func (m *Manager) all() []*Container {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := slices.Collect(maps.Values(m.containers))
	all = slices.DeleteFunc(all, func(c *Container) bool { return c == nil })
	slices.SortFunc(all, func(a, b *Container) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
