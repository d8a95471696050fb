// Package account finds the user and groups of a process by the rules of docker's --user, in the passwd and group files of
// a root file system that is not trusted.
package account

import (
	"bytes"
	"errors"
	"io/fs"
	"iter"
	"math"
	"strconv"
	"strings"

	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// Reader gives the content of a file of the root file system; fs.ErrNotExist when there is none.
type Reader func(name string) ([]byte, error)

// User is who a process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32
	// Home folder, "/" when the user has no entry.
	Home string
}

// Resolve finds a user given as "name", "uid", "name:group", "uid:gid" or a mixture. A number needs no entry. A user
// without a group gets the groups that list it.
func Resolve(read Reader, user string) (User, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	passwd, err := optional(read, "/etc/passwd")
	if err != nil {
		return User{}, err
	}
	result := User{Home: "/"}
	uid, numeric := number(name)
	login := ""
	for fields := range entries(passwd, 4) {
		entryUID, ok1 := number(fields[2])
		entryGID, ok2 := number(fields[3])
		// A number is always a uid, even if a user has it for a name.
		if !ok1 || !ok2 || (numeric && entryUID != uid) || (!numeric && fields[0] != name) {
			continue
		}
		login, result.UID, result.GID = fields[0], entryUID, entryGID
		if fields[5] != "" {
			result.Home = fields[5]
		}
		break
	}
	if login == "" {
		if !numeric {
			return User{}, guesterr.New(guestpb.GuestError_NO_SUCH_USER, name, "no entry in /etc/passwd for user")
		}
		result.UID = uid
	}
	groups, err := optional(read, "/etc/group")
	if err != nil {
		return User{}, err
	}
	if hasGroup {
		result.GID, err = findGroup(groups, group)
		return result, err
	}
	if login == "" {
		return result, nil
	}
	for fields := range entries(groups, 4) {
		gid, ok := number(fields[2])
		if !ok || len(result.Groups) >= maxGroups {
			continue
		}
		for member := range strings.SplitSeq(fields[3], ",") {
			if member == login {
				result.Groups = append(result.Groups, gid)
				break
			}
		}
	}
	return result, nil
}

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// Home is the home folder of a uid, "/" when it has none.
func Home(read Reader, uid uint32) string {
	user, err := Resolve(read, strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return "/"
	}
	return user.Home
}

func findGroup(groups []byte, group string) (uint32, error) {
	gid, numeric := number(group)
	for fields := range entries(groups, 3) {
		entry, ok := number(fields[2])
		if ok && ((numeric && entry == gid) || (!numeric && fields[0] == group)) {
			return entry, nil
		}
	}
	if !numeric {
		return 0, guesterr.New(guestpb.GuestError_NO_SUCH_USER, group, "no entry in /etc/group for group")
	}
	return gid, nil
}

// optional reads a file that need not exist.
func optional(read Reader, name string) ([]byte, error) {
	content, err := read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return content, err
}

// entries yields the lines with at least count fields, padded to seven.
func entries(content []byte, count int) iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		for line := range bytes.Lines(content) {
			text := strings.TrimSpace(string(line))
			if text == "" || text[0] == '#' {
				continue
			}
			fields := strings.Split(text, ":")
			if len(fields) < count {
				continue
			}
			for len(fields) < 7 {
				fields = append(fields, "")
			}
			if !yield(fields) {
				return
			}
		}
	}
}

// number parses a uid or gid as docker bounds them: 0 to 2^31 - 1.
func number(text string) (uint32, bool) {
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n > math.MaxInt32 {
		return 0, false
	}
	return uint32(n), true
}
