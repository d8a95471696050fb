package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// How long an adapter that was just attached may take to appear, and how often is looked.
const (
	appearLimit  = 5 * time.Second
	lookInterval = 10 * time.Millisecond
)

// Manager knows the namespaces and which adapter is where.
type Manager struct {
	mu sync.Mutex
	// MAC address by adapter id, by namespace id; "" is the utility VM's own namespace.
	namespaces map[string]map[string]string
}

// NewManager makes a Manager.
func NewManager() *Manager {
	return &Manager{namespaces: map[string]map[string]string{"": {}}}
}

// AddAdapter finds the interface with a MAC address, moves it into the namespace and configures it.
func (m *Manager) AddAdapter(ctx context.Context, r *guestpb.AddNetworkAdapterRequest) error {
	config, err := parse(r)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	adapters, ok := m.namespaces[r.NamespaceId]
	if !ok {
		return guesterr.New(guestpb.GuestError_NO_SUCH_NAMESPACE, r.NamespaceId, "add adapter to network namespace")
	}
	if _, taken := adapters[r.AdapterId]; taken {
		return guesterr.New(guestpb.GuestError_ALREADY_EXISTS, r.AdapterId, "add network adapter")
	}
	link, err := waitLink(ctx, config.mac)
	if err != nil {
		return err
	}
	handle, err := m.enter(r.NamespaceId, link)
	if err != nil {
		return fmt.Errorf("move %s into namespace %q: %w", config.mac, r.NamespaceId, err)
	}
	defer handle.Close()
	if err := config.apply(handle); err != nil {
		if r.NamespaceId != "" {
			err = errors.Join(err, m.giveBack(r.NamespaceId, r.MacAddress))
		}
		return err
	}
	adapters[r.AdapterId] = config.mac.String()
	return nil
}

// RemoveAdapter gives an adapter back to the utility VM, so that the host can detach it. One that has gone is no error.
func (m *Manager) RemoveAdapter(r *guestpb.RemoveNetworkAdapterRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	adapters, ok := m.namespaces[r.NamespaceId]
	if !ok {
		return guesterr.New(guestpb.GuestError_NO_SUCH_NAMESPACE, r.NamespaceId, "remove adapter from network namespace")
	}
	mac, ok := adapters[r.AdapterId]
	if !ok {
		return guesterr.New(guestpb.GuestError_NO_SUCH_INTERFACE, r.AdapterId, "remove network adapter")
	}
	if err := m.giveBack(r.NamespaceId, mac); err != nil {
		return fmt.Errorf("take adapter %q out of namespace %q: %w", r.AdapterId, r.NamespaceId, err)
	}
	delete(adapters, r.AdapterId)
	return nil
}

// enter moves a link into a namespace and returns a handle that works there.
func (m *Manager) enter(namespace string, link netlink.Link) (*netlink.Handle, error) {
	if namespace == "" {
		return netlink.NewHandle(unix.NETLINK_ROUTE)
	}
	ns, err := netns.GetFromPath(filepath.Join(namespaceFolder, namespace))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	// A name that is taken in the namespace would make the move fail.
	if err := netlink.LinkSetDown(link); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetName(link, fmt.Sprintf("lcow%d", link.Attrs().Index)); err != nil {
		return nil, err
	}
	if err := netlink.LinkSetNsFd(link, int(ns)); err != nil {
		return nil, err
	}
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// giveBack takes the interface with a MAC address out of a namespace, down and without addresses.
func (m *Manager) giveBack(namespace, address string) error {
	mac, err := net.ParseMAC(address)
	if err != nil {
		return err
	}
	if namespace == "" {
		link, err := findLink(netlink.LinkList, mac)
		if link == nil || err != nil {
			return err
		}
		return strip(link)
	}
	ns, err := netns.GetFromPath(filepath.Join(namespaceFolder, namespace))
	if err != nil {
		return err
	}
	defer ns.Close()
	handle, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer handle.Close()
	link, err := findLink(handle.LinkList, mac)
	if link == nil || err != nil {
		return err
	}
	if err := handle.LinkSetDown(link); err != nil {
		return err
	}
	if err := handle.LinkSetName(link, fmt.Sprintf("lcow%d", link.Attrs().Index)); err != nil {
		return err
	}
	own, err := netns.GetFromPid(1)
	if err != nil {
		return err
	}
	defer own.Close()
	return handle.LinkSetNsFd(link, int(own))
}

// strip takes an interface of the utility VM down and its addresses away; a move to another namespace does that by itself.
func strip(link netlink.Link) error {
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, address := range addresses {
		if err := netlink.AddrDel(link, &address); err != nil {
			return err
		}
	}
	return netlink.LinkSetDown(link)
}

// waitLink finds an interface of the utility VM, waiting for one that was just attached.
func waitLink(ctx context.Context, mac net.HardwareAddr) (netlink.Link, error) {
	ctx, cancel := context.WithTimeout(ctx, appearLimit)
	defer cancel()
	for {
		link, err := findLink(netlink.LinkList, mac)
		if link != nil || err != nil {
			return link, err
		}
		select {
		case <-time.After(lookInterval):
		case <-ctx.Done():
			return nil, guesterr.Wrap(guestpb.GuestError_NO_SUCH_INTERFACE, mac.String(), ctx.Err(), "wait for the interface with MAC address")
		}
	}
}

func findLink(list func() ([]netlink.Link, error), mac net.HardwareAddr) (netlink.Link, error) {
	links, err := list()
	if err != nil {
		return nil, err
	}
	for _, link := range links {
		if bytes.Equal(link.Attrs().HardwareAddr, mac) {
			return link, nil
		}
	}
	return nil, nil
}

// settings are what an adapter gets.
type settings struct {
	mac       net.HardwareAddr
	name      string
	mtu       int
	addresses []*net.IPNet
	gateways  []net.IP
}

func parse(r *guestpb.AddNetworkAdapterRequest) (*settings, error) {
	mac, err := net.ParseMAC(r.MacAddress)
	if err != nil {
		return nil, guesterr.Invalid("mac_address: %v", err)
	}
	s := &settings{mac: mac, name: r.InterfaceName, mtu: int(r.Mtu)}
	if s.name != "" && (len(s.name) >= unix.IFNAMSIZ || !printable(s.name)) {
		return nil, guesterr.Invalid("interface_name %q: up to %d plain characters are allowed", s.name, unix.IFNAMSIZ-1)
	}
	for _, text := range r.Addresses {
		ip, subnet, err := net.ParseCIDR(text)
		if err != nil {
			return nil, guesterr.Invalid("addresses: %v", err)
		}
		s.addresses = append(s.addresses, &net.IPNet{IP: ip, Mask: subnet.Mask})
	}
	for _, text := range r.Gateways {
		ip := net.ParseIP(text)
		if ip == nil {
			return nil, guesterr.Invalid("gateways: %q is no address", text)
		}
		s.gateways = append(s.gateways, ip)
	}
	return s, nil
}

// printable tells whether the kernel takes a text as the name of an interface.
func printable(name string) bool {
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' {
			return false
		}
	}
	return name != "." && name != ".."
}

// apply configures the adapter through a handle of its namespace.
func (s *settings) apply(handle *netlink.Handle) error {
	link, err := findLink(handle.LinkList, s.mac)
	if err == nil && link == nil {
		err = guesterr.New(guestpb.GuestError_NO_SUCH_INTERFACE, s.mac.String(), "configure the interface with MAC address")
	}
	if err != nil {
		return err
	}
	if s.name != "" && s.name != link.Attrs().Name {
		if err := handle.LinkSetDown(link); err != nil {
			return fmt.Errorf("take %s down: %w", s.mac, err)
		}
		if err := handle.LinkSetName(link, s.name); err != nil {
			return fmt.Errorf("name %s %q: %w", s.mac, s.name, err)
		}
	}
	if s.mtu > 0 {
		if err := handle.LinkSetMTU(link, s.mtu); err != nil {
			return fmt.Errorf("set the MTU of %s to %d: %w", s.mac, s.mtu, err)
		}
	}
	for _, address := range s.addresses {
		// No duplicate address detection: the host gives addresses out, and an IPv6 address could not be used for seconds.
		err := handle.AddrReplace(link, &netlink.Addr{IPNet: address, Flags: unix.IFA_F_NODAD})
		if err != nil {
			return fmt.Errorf("give %s the address %s: %w", s.mac, address, err)
		}
	}
	if err := handle.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring up %s: %w", s.mac, err)
	}
	for _, gateway := range s.gateways {
		if err := s.addDefaultRoute(handle, link, gateway); err != nil {
			return fmt.Errorf("route through %s: %w", gateway, err)
		}
	}
	return nil
}

func (s *settings) addDefaultRoute(handle *netlink.Handle, link netlink.Link, gateway net.IP) error {
	index := link.Attrs().Index
	if !s.onLink(gateway) {
		// The kernel takes a gateway only when it knows how to reach it.
		host := &net.IPNet{IP: gateway, Mask: net.CIDRMask(bits(gateway), bits(gateway))}
		if err := handle.RouteReplace(&netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: host}); err != nil {
			return err
		}
	}
	everything := &net.IPNet{IP: make(net.IP, bits(gateway)/8), Mask: net.CIDRMask(0, bits(gateway))}
	return handle.RouteReplace(&netlink.Route{LinkIndex: index, Gw: gateway, Dst: everything})
}

// onLink tells whether an address is in the subnet of one of the adapter's.
func (s *settings) onLink(ip net.IP) bool {
	for _, address := range s.addresses {
		if address.Contains(ip) {
			return true
		}
	}
	return ip.IsLinkLocalUnicast() && ip.To4() == nil
}

func bits(ip net.IP) int {
	if ip.To4() != nil {
		return 32
	}
	return 128
}
