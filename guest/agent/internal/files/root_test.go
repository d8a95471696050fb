package files

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// hostileRoot is a root with links that lead out of it, beside a file that must not be reached.
func hostileRoot(t *testing.T) (*Root, string, string) {
	t.Helper()
	base := t.TempDir()
	rootfs := filepath.Join(base, "rootfs")
	secret := filepath.Join(base, "secret")
	for _, step := range []error{
		os.MkdirAll(filepath.Join(rootfs, "etc"), 0o755),
		os.WriteFile(secret, []byte("outside"), 0o644),
		os.WriteFile(filepath.Join(rootfs, "etc/passwd"), []byte("inside"), 0o600),
		os.Symlink("/etc/passwd", filepath.Join(rootfs, "absolute")),
		os.Symlink("../../../../etc/passwd", filepath.Join(rootfs, "etc/up")),
		os.Symlink(secret, filepath.Join(rootfs, "out")),
		os.Symlink("../secret", filepath.Join(rootfs, "beside")),
		os.Symlink("..", filepath.Join(rootfs, "parent")),
		os.Symlink(base, filepath.Join(rootfs, "folder")),
		os.Symlink("loop", filepath.Join(rootfs, "loop")),
		os.Symlink("/nowhere", filepath.Join(rootfs, "dangling")),
		unix.Mkfifo(filepath.Join(rootfs, "pipe"), 0o644),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	root, err := OpenRoot(rootfs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(root.Close)
	return root, rootfs, secret
}

func TestLinksAreResolvedInsideTheRoot(t *testing.T) {
	root, _, _ := hostileRoot(t)
	for _, name := range []string{"/etc/passwd", "etc/passwd", "absolute", "etc/up", "../../etc/passwd", "/../etc//passwd", "parent/etc/passwd"} {
		content, mode, err := root.ReadFile(name, Limit)
		if err != nil || string(content) != "inside" || mode.Perm() != 0o600 {
			t.Errorf("%s: %q %v %v", name, content, mode, err)
		}
	}
}

func TestNothingOutsideIsRead(t *testing.T) {
	root, _, secret := hostileRoot(t)
	for name, want := range map[string]guesterr.Reason{
		"out": guestpb.GuestError_NO_SUCH_FILE, "beside": guestpb.GuestError_NO_SUCH_FILE,
		"parent/secret": guestpb.GuestError_NO_SUCH_FILE, "folder/secret": guestpb.GuestError_NO_SUCH_FILE,
		"../secret": guestpb.GuestError_NO_SUCH_FILE, secret: guestpb.GuestError_NO_SUCH_FILE,
		"loop": guestpb.GuestError_PATH_ESCAPES, "missing": guestpb.GuestError_NO_SUCH_FILE,
		"pipe": 0, "etc": 0, "": 0, "/": 0,
	} {
		if content, _, err := root.ReadFile(name, Limit); err == nil || guesterr.ReasonOf(err) != want {
			t.Errorf("%s: %q %v", name, content, err)
		}
	}
}

func TestNothingOutsideIsWritten(t *testing.T) {
	root, rootfs, secret := hostileRoot(t)
	for _, name := range []string{"out", "beside", "parent/secret", "folder/secret", "../secret", "pipe", "loop"} {
		_ = root.WriteFile(name, []byte("overwritten"), 0o644)
		_ = root.MkdirAll(name+"/made", 0o755)
	}
	if content, err := os.ReadFile(secret); err != nil || string(content) != "outside" {
		t.Fatalf("%q %v", content, err)
	}
	entries, err := os.ReadDir(filepath.Dir(rootfs))
	if err != nil || len(entries) != 2 {
		t.Fatal(entries, err)
	}
}

func TestFilesAreWrittenWithTheirModeAndFolders(t *testing.T) {
	root, rootfs, _ := hostileRoot(t)
	if err := root.MkdirAll("/a/b/../c", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile("/a/c/file", []byte("a longer content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile("/a/c/file", []byte("short"), 0o640); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(rootfs, "a/c/file"))
	if err != nil || info.Mode() != 0o640 || info.Size() != 5 {
		t.Fatal(info, err)
	}
	if err := root.WriteFile("absolute", []byte("through a link"), 0o644); err != nil {
		t.Fatal(err)
	}
	if content, _ := os.ReadFile(filepath.Join(rootfs, "etc/passwd")); string(content) != "through a link" {
		t.Fatalf("%q", content)
	}
	for _, name := range []string{"etc/passwd/x", "dangling/x"} {
		if err := root.MkdirAll(name, 0o755); err == nil {
			t.Errorf("made %s", name)
		}
	}
}

func TestLongFilesAreRefused(t *testing.T) {
	root, rootfs, _ := hostileRoot(t)
	if err := os.WriteFile(filepath.Join(rootfs, "long"), bytes.Repeat([]byte("x"), 101), 0o644); err != nil {
		t.Fatal(err)
	}
	if content, _, err := root.ReadFile("long", 101); err != nil || len(content) != 101 {
		t.Fatal(len(content), err)
	}
	if _, _, err := root.ReadFile("long", 100); guesterr.ReasonOf(err) != guestpb.GuestError_TOO_LARGE {
		t.Fatal(err)
	}
	if err := root.WriteFile("new", make([]byte, Limit+1), 0o644); guesterr.ReasonOf(err) != guestpb.GuestError_TOO_LARGE {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(rootfs, "new")); err == nil {
		t.Fatal("a file was left")
	}
}
