package network

import (
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

func TestAdapterSettingsAreParsedAsTheyAreWritten(t *testing.T) {
	s, err := parse(&guestpb.AddNetworkAdapterRequest{
		MacAddress: "52-54-00-AB-cd-56", InterfaceName: "eth0", Addresses: []string{"10.0.2.15/24", "fec0::5/64"},
		Gateways: []string{"10.0.2.2", "fec0::2"}, Mtu: 1400,
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.mac.String() != "52:54:00:ab:cd:56" || s.addresses[0].String() != "10.0.2.15/24" || s.addresses[1].String() != "fec0::5/64" ||
		!s.gateways[1].Equal(net.ParseIP("fec0::2")) || s.mtu != 1400 {
		t.Fatal(s)
	}
}

func TestBadAdapterSettingsAreRefused(t *testing.T) {
	const mac = "52:54:00:12:34:56"
	for _, r := range []*guestpb.AddNetworkAdapterRequest{
		{},
		{MacAddress: "x"},
		{MacAddress: mac, InterfaceName: strings.Repeat("e", 16)},
		{MacAddress: mac, InterfaceName: "a/b"},
		{MacAddress: mac, InterfaceName: ".."},
		{MacAddress: mac, InterfaceName: "eth%d"},
		{MacAddress: mac, Addresses: []string{"10.0.0.1"}},
		{MacAddress: mac, Addresses: []string{"10.0.0.1/33"}},
		{MacAddress: mac, Gateways: []string{"gateway"}},
	} {
		if _, err := parse(r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", r, err)
		}
	}
}

func TestGatewayOutsideEverySubnetNeedsARouteToItself(t *testing.T) {
	s, err := parse(&guestpb.AddNetworkAdapterRequest{MacAddress: "52:54:00:12:34:56", Addresses: []string{"10.0.2.15/24", "192.168.1.1/32", "fec0::5/64"}})
	if err != nil {
		t.Fatal(err)
	}
	for ip, want := range map[string]bool{
		"10.0.2.2": true, "10.0.3.2": false, "169.254.1.1": false, "192.168.1.254": false, "fec0::2": true, "fe80::1": true, "2001:db8::1": false,
	} {
		if got := s.onLink(net.ParseIP(ip)); got != want {
			t.Errorf("%s: %v", ip, got)
		}
	}
}

func TestUnknownNamespacesAndAdaptersAreNamed(t *testing.T) {
	m := NewManager()
	if err := m.RemoveNamespace("x"); guesterr.ReasonOf(err) != guestpb.GuestError_NO_SUCH_NAMESPACE {
		t.Fatal(err)
	}
	if err := m.RemoveNamespace(""); guesterr.ReasonOf(err) != guestpb.GuestError_NO_SUCH_NAMESPACE {
		t.Fatal("the utility VM's own namespace was removed:", err)
	}
	if err := m.RemoveAdapter(&guestpb.RemoveNetworkAdapterRequest{NamespaceId: "x"}); guesterr.ReasonOf(err) != guestpb.GuestError_NO_SUCH_NAMESPACE {
		t.Fatal(err)
	}
	if err := m.RemoveAdapter(&guestpb.RemoveNetworkAdapterRequest{AdapterId: "x"}); guesterr.ReasonOf(err) != guestpb.GuestError_NO_SUCH_INTERFACE {
		t.Fatal(err)
	}
}
