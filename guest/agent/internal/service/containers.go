package service

import (
	"context"

	"lcow.dev/agent/internal/guestpb"
)

// CreateContainer creates a container, its init waiting to be started.
func (s *Service) CreateContainer(ctx context.Context, r *guestpb.CreateContainerRequest) (*guestpb.CreateContainerResponse, error) {
	if err := checkID("container_id", r.ContainerId); err != nil {
		return nil, err
	}
	c, err := s.containers.Create(ctx, r)
	if err != nil {
		return nil, err
	}
	return &guestpb.CreateContainerResponse{Pid: uint32(c.Init().Pid())}, nil
}

// StartContainer has the container's init execute its program.
func (s *Service) StartContainer(_ context.Context, r *guestpb.StartContainerRequest) (*guestpb.StartContainerResponse, error) {
	c, err := s.containers.Get(r.ContainerId)
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, err
	}
	return &guestpb.StartContainerResponse{}, nil
}

// DeleteContainer removes a container.
func (s *Service) DeleteContainer(ctx context.Context, r *guestpb.DeleteContainerRequest) (*guestpb.DeleteContainerResponse, error) {
	if err := s.containers.Delete(ctx, r.ContainerId, r.Force); err != nil {
		return nil, err
	}
	return &guestpb.DeleteContainerResponse{}, nil
}

// ListContainers tells about all containers.
func (s *Service) ListContainers(context.Context, *guestpb.ListContainersRequest) (*guestpb.ListContainersResponse, error) {
	return &guestpb.ListContainersResponse{Containers: s.containers.List()}, nil
}
