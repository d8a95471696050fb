// Command go-ttrpc is containerd's own ttrpc library as client or server of the Echo service, the other party of the
// wire tests in src/ttrpc/interop.test.ts.
//
//	go-ttrpc serve SOCKET    serves until standard input ends
//	go-ttrpc call SOCKET     runs every check against a server and exits with 0 when all hold
package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

const service = "lcow.test.Echo"

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: go-ttrpc serve|call SOCKET")
		os.Exit(2)
	}
	run := map[string]func(string) error{"serve": serve, "call": call}[os.Args[1]]
	if err := run(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve(socket string) error {
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	server.RegisterService(service, &ttrpc.ServiceDesc{Methods: map[string]ttrpc.Method{
		"Say": method(func(_ context.Context, r *wrapperspb.BytesValue) (proto.Message, error) { return r, nil }),
		"Fail": method(func(_ context.Context, r *wrapperspb.Int32Value) (proto.Message, error) {
			failed, err := status.New(codes.Code(r.Value), "as asked").WithDetails(wrapperspb.String("the detail"))
			if err != nil {
				return nil, err
			}
			return nil, failed.Err()
		}),
		"Hang": method(func(ctx context.Context, _ *wrapperspb.StringValue) (proto.Message, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}),
		"Metadata": method(func(ctx context.Context, r *wrapperspb.StringValue) (proto.Message, error) {
			value, _ := ttrpc.GetMetadataValue(ctx, r.Value)
			return wrapperspb.String(value), nil
		}),
		"Zeros": method(func(_ context.Context, r *wrapperspb.Int32Value) (proto.Message, error) {
			return wrapperspb.Bytes(make([]byte, r.Value)), nil
		}),
	}})
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	go func() { _ = server.Serve(context.Background(), listener) }()
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, server.Close())
}

func method[R any, P interface {
	*R
	proto.Message
}](handle func(context.Context, P) (proto.Message, error)) ttrpc.Method {
	return func(ctx context.Context, unmarshal func(any) error) (any, error) {
		request := P(new(R))
		if err := unmarshal(request); err != nil {
			return nil, err
		}
		return handle(ctx, request)
	}
}

func call(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	client := ttrpc.NewClient(conn)
	checks := []struct {
		name string
		run  func(*ttrpc.Client) error
	}{
		{"echo of nothing, a byte and 3 MiB", echoes},
		{"200 calls at once", concurrent},
		{"status with details", failure},
		{"unknown method and service", unknown},
		{"metadata", metadata},
		{"a response above 4 MiB is refused, the connection goes on", tooLarge},
		{"the time-out reaches the handler", timeout},
	}
	for _, check := range checks {
		if err := check.run(client); err != nil {
			return fmt.Errorf("%s: %w", check.name, err)
		}
		fmt.Println("ok", check.name)
	}
	return client.Close()
}

func echoes(client *ttrpc.Client) error {
	for _, size := range []int{0, 1, 3 << 20} {
		sent := make([]byte, size)
		_, _ = rand.Read(sent)
		var got wrapperspb.BytesValue
		if err := client.Call(context.Background(), service, "Say", wrapperspb.Bytes(sent), &got); err != nil {
			return err
		}
		if !bytes.Equal(sent, got.Value) {
			return fmt.Errorf("%d bytes came back different", size)
		}
	}
	return nil
}

func concurrent(client *ttrpc.Client) error {
	failures := make([]error, 200)
	var all sync.WaitGroup
	for i := range failures {
		all.Go(func() {
			sent := fmt.Appendf(nil, "call %d", i)
			var got wrapperspb.BytesValue
			failures[i] = client.Call(context.Background(), service, "Say", wrapperspb.Bytes(sent), &got)
			if failures[i] == nil && !bytes.Equal(sent, got.Value) {
				failures[i] = fmt.Errorf("call %d got %q", i, got.Value)
			}
		})
	}
	all.Wait()
	return errors.Join(failures...)
}

func failure(client *ttrpc.Client) error {
	err := client.Call(context.Background(), service, "Fail", wrapperspb.Int32(9), &wrapperspb.BytesValue{})
	got := status.Convert(err)
	if got.Code() != codes.FailedPrecondition || got.Message() != "as asked" || len(got.Details()) != 1 {
		return fmt.Errorf("got %v with %d details", got, len(got.Details()))
	}
	if detail, ok := got.Details()[0].(*wrapperspb.StringValue); !ok || detail.Value != "the detail" {
		return fmt.Errorf("got the detail %v", got.Details()[0])
	}
	return nil
}

func unknown(client *ttrpc.Client) error {
	for _, name := range [][2]string{{service, "Nothing"}, {"lcow.test.Nothing", "Say"}} {
		err := client.Call(context.Background(), name[0], name[1], wrapperspb.String(""), &wrapperspb.BytesValue{})
		if status.Code(err) != codes.Unimplemented {
			return fmt.Errorf("%v: %v", name, err)
		}
	}
	return nil
}

func metadata(client *ttrpc.Client) error {
	ctx := ttrpc.WithMetadata(context.Background(), ttrpc.MD{"key": []string{"value", "another"}})
	var got wrapperspb.StringValue
	if err := client.Call(ctx, service, "Metadata", wrapperspb.String("key"), &got); err != nil {
		return err
	}
	if got.Value != "value" {
		return fmt.Errorf("got %q", got.Value)
	}
	return nil
}

func tooLarge(client *ttrpc.Client) error {
	err := client.Call(context.Background(), service, "Zeros", wrapperspb.Int32(5<<20), &wrapperspb.BytesValue{})
	if status.Code(err) != codes.ResourceExhausted {
		return fmt.Errorf("got %v", err)
	}
	return echoes(client)
}

func timeout(client *ttrpc.Client) error {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	err := client.Call(ctx, service, "Hang", wrapperspb.String(""), &wrapperspb.BytesValue{})
	if !errors.Is(err, context.DeadlineExceeded) && status.Code(err) != codes.DeadlineExceeded {
		return fmt.Errorf("got %v", err)
	}
	return nil
}
