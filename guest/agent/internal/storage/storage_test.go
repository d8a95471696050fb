package storage

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

func TestSerialIsReadOfPage80(t *testing.T) {
	for page, want := range map[string]string{
		"\x00\x80\x00\x08lcow-0-1":                    "lcow-0-1",
		"\x00\x80\x00\x0c  lcow-0-1  ":                "lcow-0-1",
		"\x00\x80\x00\x0clcow-0-1\x00\x00":            "lcow-0-1",
		"\x00\x80\x00\x04lcow-0-1":                    "lcow",
		"\x00\x80\xff\xfflcow":                        "lcow",
		"\x00\x83\x00\x08lcow-0-1":                    "",
		"\x00\x80\x00\x00":                            "",
		"\x00\x80\x00":                                "",
		"":                                            "",
		"\x00\x80\x01\x00" + strings.Repeat("x", 256): strings.Repeat("x", 256),
	} {
		if got := parseUnitSerial([]byte(page)); got != want {
			t.Errorf("%q: %q, want %q", page, got, want)
		}
	}
}

func TestDisksAreFoundBySerialWhateverTheirKind(t *testing.T) {
	folder := t.TempDir()
	write := func(name, content string) {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("vda/serial", "slot1\n")
	write("vdb/serial", "")
	write("sda/device/vpd_pg80", "\x00\x80\x00\x08lcow-0-2")
	write("sdb/device/vpd_pg80", "\x00\x80\x00\x08lcow-0-1")
	write("loop0/size", "0")
	for serial, want := range map[string]string{"slot1": "vda", "lcow-0-1": "sdb", "lcow-0-2": "sda", "lcow-0": "", "": ""} {
		if got, err := findDisk(folder, serial); err != nil || got != want {
			t.Errorf("%q: %q %v, want %q", serial, got, err, want)
		}
	}
}

func TestDiskThatTheKernelTakesForEmptyIsAskedAgain(t *testing.T) {
	folder := t.TempDir()
	for name, size := range map[string]string{"sda": "0\n", "sdb": "112\n"} {
		if err := os.MkdirAll(filepath.Join(folder, name, "device"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, name, "size"), []byte(size), 0o644); err != nil {
			t.Fatal(err)
		}
		rescan := filepath.Join(folder, name, "device", "rescan")
		if err := os.WriteFile(rescan, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		known := hasSize(folder, name)
		asked, err := os.ReadFile(rescan)
		if want := name == "sdb"; err != nil || known != want || (string(asked) == "1") == want {
			t.Errorf("%s: known %v, asked %q, %v", name, known, asked, err)
		}
	}
}

func TestMountOptionsAreFlagsOrTheFileSystems(t *testing.T) {
	flags, data := mountOptions([]string{"noatime", "noload", "nodev", "data=writeback"})
	if flags != unix.MS_NOATIME|unix.MS_NODEV || !reflect.DeepEqual(data, []string{"noload", "data=writeback"}) {
		t.Fatal(flags, data)
	}
}

func TestOverlayOptionsOf500LayersFitIntoOnePage(t *testing.T) {
	layers := make([]string, maxLayers)
	for i := range layers {
		layers[i] = fmt.Sprintf("/run/mounts/scsi/a:long,path\\with everything/m%d", i)
	}
	links, options := overlayOptions(layers, "/scratch/upper", "/scratch/work")
	if len(options) > optionsLimit {
		t.Fatal(len(options))
	}
	lower, rest, _ := strings.Cut(strings.TrimPrefix(options, "lowerdir="), ",")
	if rest != "upperdir=U,workdir=W" || links["U"] != "/scratch/upper" || links["W"] != "/scratch/work" || len(links) != maxLayers+2 {
		t.Fatal(rest, len(links))
	}
	for i, name := range strings.Split(lower, ":") {
		if links[name] != layers[i] {
			t.Fatalf("layer %d is %q", i, links[name])
		}
	}
	if _, options := overlayOptions(layers[:2], "", ""); options != "lowerdir=0:1" {
		t.Fatal(options)
	}
}

func TestFoldersMadeForAMountGoWithIt(t *testing.T) {
	base := t.TempDir()
	made, err := makeFolders(filepath.Join(base, "a/b/c"))
	if err != nil || len(made) != 3 {
		t.Fatal(made, err)
	}
	if err := os.WriteFile(filepath.Join(base, "a/other"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	(&mounted{made: made}).removeFolders()
	if _, err := os.Stat(filepath.Join(base, "a/b")); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(base, "a")); err != nil {
		t.Fatal("a folder in use was removed")
	}
	if made, err := makeFolders(filepath.Join(base, "a")); err != nil || len(made) != 0 {
		t.Fatal(made, err)
	}
	if _, err := makeFolders(filepath.Join(base, "a/other/x")); err == nil {
		t.Fatal("made a folder in a file")
	}
}

func manager() *Manager { return NewManager(slog.New(slog.NewTextHandler(io.Discard, nil))) }

func TestTargetIsUsedOnceAtATime(t *testing.T) {
	m := manager()
	entry, err := m.reserve("/run/x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.reserve("/run/x"); guesterr.ReasonOf(err) != guestpb.GuestError_ALREADY_EXISTS {
		t.Fatal(err)
	}
	if _, err := m.take("/run/x"); guesterr.ReasonOf(err) != guestpb.GuestError_WRONG_STATE {
		t.Fatal("taken while it is mounted:", err)
	}
	m.settle(entry)
	if _, err := m.take("/run/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := m.take("/run/x"); guesterr.ReasonOf(err) != guestpb.GuestError_WRONG_STATE {
		t.Fatal("taken twice:", err)
	}
	m.forget(entry)
	if _, err := m.take("/run/x"); guesterr.ReasonOf(err) != guestpb.GuestError_WRONG_STATE {
		t.Fatal(err)
	}
	for _, target := range []string{"", "/", "relative", "/a/../b", "/a/"} {
		if _, err := m.reserve(target); err == nil {
			t.Errorf("reserved %q", target)
		}
	}
}

func TestBadRequestsLeaveNothing(t *testing.T) {
	m := manager()
	layer := t.TempDir()
	rootfs := filepath.Join(t.TempDir(), "rootfs")
	for _, r := range []*guestpb.CombineLayersRequest{
		{RootfsPath: rootfs},
		{RootfsPath: rootfs, LayerPaths: make([]string, maxLayers+1)},
		{RootfsPath: rootfs, LayerPaths: []string{layer + "/missing"}},
		{RootfsPath: rootfs, LayerPaths: []string{"/etc/passwd"}},
		{RootfsPath: rootfs, LayerPaths: []string{layer}, ScratchPath: layer, ScratchDir: "../x"},
		{RootfsPath: rootfs, LayerPaths: []string{layer}, ScratchPath: layer, ScratchDir: "/x"},
	} {
		if err := m.CombineLayers(r); err == nil {
			t.Errorf("combined %v", r)
		}
	}
	if len(m.mounted) != 0 {
		t.Fatal(m.mounted)
	}
	if _, err := os.Stat(rootfs); !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := m.MountDisks(t.Context(), &guestpb.MountDisksRequest{Mounts: []*guestpb.DiskMount{{Target: rootfs}}}); err == nil {
		t.Fatal("mounted a disk without a serial number")
	}
	err := m.UnmountDisks(&guestpb.UnmountDisksRequest{Unmounts: []*guestpb.DiskUnmount{{Serial: "a", Target: "/x"}, {Serial: "b", Target: "/y"}}})
	if err == nil || !strings.Contains(err.Error(), "/x") || !strings.Contains(err.Error(), "/y") {
		t.Fatal("not every failure was reported:", err)
	}
}

func TestThreadInAnotherFolderChangesNoOther(t *testing.T) {
	before, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	inside := ""
	if err := inFolder(folder, func() error {
		buffer := make([]byte, unix.PathMax)
		n, err := unix.Getcwd(buffer)
		if err == nil {
			inside = string(buffer[:n-1])
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	resolved, _ := filepath.EvalSymlinks(folder)
	if inside != resolved {
		t.Fatalf("%q, want %q", inside, resolved)
	}
	if after, _ := os.Getwd(); after != before {
		t.Fatal(after)
	}
}
