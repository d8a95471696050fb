package service

import (
	"context"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"lcow.dev/agent/internal/guestpb"
)

var errNotYet = status.Error(codes.Unimplemented, "not implemented")

func (s *Service) stopAll(context.Context, int) {}

func (s *Service) MountDisks(context.Context, *guestpb.MountDisksRequest) (*guestpb.MountDisksResponse, error) {
	return nil, errNotYet
}

func (s *Service) UnmountDisks(context.Context, *guestpb.UnmountDisksRequest) (*guestpb.UnmountDisksResponse, error) {
	return nil, errNotYet
}

func (s *Service) CombineLayers(context.Context, *guestpb.CombineLayersRequest) (*guestpb.CombineLayersResponse, error) {
	return nil, errNotYet
}

func (s *Service) RemoveLayers(context.Context, *guestpb.RemoveLayersRequest) (*guestpb.RemoveLayersResponse, error) {
	return nil, errNotYet
}

func (s *Service) AddNetworkNamespace(context.Context, *guestpb.AddNetworkNamespaceRequest) (*guestpb.AddNetworkNamespaceResponse, error) {
	return nil, errNotYet
}

func (s *Service) RemoveNetworkNamespace(context.Context, *guestpb.RemoveNetworkNamespaceRequest) (*guestpb.RemoveNetworkNamespaceResponse, error) {
	return nil, errNotYet
}

func (s *Service) AddNetworkAdapter(context.Context, *guestpb.AddNetworkAdapterRequest) (*guestpb.AddNetworkAdapterResponse, error) {
	return nil, errNotYet
}

func (s *Service) RemoveNetworkAdapter(context.Context, *guestpb.RemoveNetworkAdapterRequest) (*guestpb.RemoveNetworkAdapterResponse, error) {
	return nil, errNotYet
}

func (s *Service) CreateContainer(context.Context, *guestpb.CreateContainerRequest) (*guestpb.CreateContainerResponse, error) {
	return nil, errNotYet
}

func (s *Service) StartContainer(context.Context, *guestpb.StartContainerRequest) (*guestpb.StartContainerResponse, error) {
	return nil, errNotYet
}

func (s *Service) DeleteContainer(context.Context, *guestpb.DeleteContainerRequest) (*guestpb.DeleteContainerResponse, error) {
	return nil, errNotYet
}

func (s *Service) ListContainers(context.Context, *guestpb.ListContainersRequest) (*guestpb.ListContainersResponse, error) {
	return nil, errNotYet
}

func (s *Service) ReadFile(context.Context, *guestpb.ReadFileRequest) (*guestpb.ReadFileResponse, error) {
	return nil, errNotYet
}

func (s *Service) WriteFile(context.Context, *guestpb.WriteFileRequest) (*guestpb.WriteFileResponse, error) {
	return nil, errNotYet
}

func (s *Service) Stats(context.Context, *guestpb.StatsRequest) (*guestpb.StatsResponse, error) {
	return nil, errNotYet
}

func (s *Service) Shutdown(context.Context, *guestpb.ShutdownRequest) (*guestpb.ShutdownResponse, error) {
	return nil, errNotYet
}
