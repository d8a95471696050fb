package account

import (
	"errors"
	"io/fs"
	"reflect"
	"strings"
	"testing"

	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

const passwd = `# comment
root:x:0:0:root:/root:/bin/sh

bob:x:1000:1001:Bob,,,:/home/bob:/bin/bash
1234:x:5:5::/odd:
short:x:7:8
broken:x:abc:0::/x:
cut:x
nohome:x:9:9:::
bob:x:2000:2000::/second:
`

const group = `root:x:0:
wheel:x:10:root,bob
bob:x:1001:
audio:x:29:alice,bob
bobby:x:30:bobby
broken:x:abc:bob
77:x:78:
`

func reader(files map[string]string) Reader {
	return func(name string) ([]byte, error) {
		content, ok := files[name]
		if !ok {
			return nil, fs.ErrNotExist
		}
		return []byte(content), nil
	}
}

var both = reader(map[string]string{"/etc/passwd": passwd, "/etc/group": group})

func TestUsersAreResolvedAsDockerDoes(t *testing.T) {
	for user, want := range map[string]User{
		"root":         {0, 0, []uint32{10}, "/root"},
		"0":            {0, 0, []uint32{10}, "/root"},
		"bob":          {1000, 1001, []uint32{10, 29}, "/home/bob"},
		"1000":         {1000, 1001, []uint32{10, 29}, "/home/bob"},
		"1000:audio":   {1000, 29, nil, "/home/bob"},
		"bob:0":        {1000, 0, nil, "/home/bob"},
		"bob:4444":     {1000, 4444, nil, "/home/bob"},
		"4321":         {4321, 0, nil, "/"},
		"4321:4322":    {4321, 4322, nil, "/"},
		"short":        {7, 8, nil, "/"},
		"nohome":       {9, 9, nil, "/"},
		"1234":         {1234, 0, nil, "/"}, // a number is a uid, even if a user has it for a name
		"bob:77":       {1000, 77, nil, "/home/bob"},
		"2147483647:1": {2147483647, 1, nil, "/"},
	} {
		got, err := Resolve(both, user)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, %v; want %+v", user, got, err, want)
		}
	}
}

func TestUnknownNamesAreRefused(t *testing.T) {
	for _, user := range []string{"alice", "", "broken", "cut", "bob:nobody", "-1", "2147483648", "bob:", "4294967296"} {
		if got, err := Resolve(both, user); guesterr.ReasonOf(err) != guestpb.GuestError_NO_SUCH_USER {
			t.Errorf("%q: %+v, %v", user, got, err)
		}
	}
}

func TestNumbersNeedNoFiles(t *testing.T) {
	none := reader(nil)
	if got, err := Resolve(none, "5:6"); err != nil || got.UID != 5 || got.GID != 6 || got.Home != "/" {
		t.Fatal(got, err)
	}
	if _, err := Resolve(none, "root"); err == nil {
		t.Fatal("a name was found without a file")
	}
	if home := Home(both, 1000); home != "/home/bob" {
		t.Fatal(home)
	}
	if home := Home(none, 1000); home != "/" {
		t.Fatal(home)
	}
}

func TestUnreadableFilesAreErrors(t *testing.T) {
	bad := errors.New("bad sector")
	if _, err := Resolve(func(string) ([]byte, error) { return nil, bad }, "5"); !errors.Is(err, bad) {
		t.Fatal(err)
	}
}

func FuzzResolve(f *testing.F) {
	f.Add(passwd, group, "bob:audio")
	f.Fuzz(func(t *testing.T, passwd, group, user string) {
		got, err := Resolve(reader(map[string]string{"/etc/passwd": passwd, "/etc/group": group}), user)
		if err == nil && !strings.Contains(user, ":") && got.Home == "" {
			t.Fatal("no home")
		}
	})
}
