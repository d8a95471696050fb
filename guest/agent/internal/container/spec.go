package container

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"path"
	"path/filepath"
	"strings"

	"lcow.dev/agent/internal/account"
	"lcow.dev/agent/internal/files"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

// object is a JSON object whose fields the agent need not know all: what it does not change goes to the runtime as it came.
type object map[string]any

func parseObject(name string, text []byte) (object, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	// Numbers keep all their digits.
	decoder.UseNumber()
	var o object
	if err := decoder.Decode(&o); err != nil {
		return nil, guesterr.Invalid("%s: %v", name, err)
	}
	if o == nil {
		return nil, guesterr.Invalid("%s is not an object", name)
	}
	return o, nil
}

// child is the object in a field, made when it is not there.
func (o object) child(name string) object {
	if found, ok := o[name].(map[string]any); ok {
		return found
	}
	made := object{}
	o[name] = map[string]any(made)
	return made
}

func (o object) text(name string) string {
	text, _ := o[name].(string)
	return text
}

func (o object) number(name string) (uint32, bool) {
	number, ok := o[name].(json.Number)
	if !ok {
		return 0, false
	}
	n, err := number.Int64()
	if err != nil || n < 0 || n > math.MaxUint32 {
		return 0, false
	}
	return uint32(n), true
}

func (o object) boolean(name string) bool {
	b, _ := o[name].(bool)
	return b
}

func (o object) texts(name string) []string {
	var texts []string
	list, _ := o[name].([]any)
	for _, value := range list {
		if text, ok := value.(string); ok {
			texts = append(texts, text)
		}
	}
	return texts
}

// The limits of open files that a process gets when its specification says nothing: enough for a server that asks for
// more, few for old programs that close every descriptor there may be.
const (
	softOpenFiles = 1024
	hardOpenFiles = 1048576
)

// completeProcess resolves the user of an OCI process in the root file system and adds what docker would: the home folder,
// limits, the size of the terminal.
func completeProcess(process object, root *files.Root, user string, size *guestpb.ConsoleSize) error {
	args := process.texts("args")
	if len(args) == 0 || args[0] == "" {
		return guesterr.New(guestpb.GuestError_COMMAND_NOT_FOUND, "", "no command was given")
	}
	cwd := process.text("cwd")
	if cwd == "" {
		cwd = "/"
		process["cwd"] = cwd
	}
	if !path.IsAbs(cwd) {
		return guesterr.New(guestpb.GuestError_BAD_WORKING_DIRECTORY, cwd, "working directory is not absolute:")
	}
	home, err := completeUser(process.child("user"), root, user)
	if err != nil {
		return err
	}
	env := process.texts("env")
	if !hasVariable(env, "HOME") {
		process["env"] = append(env, "HOME="+home)
	}
	if limits, _ := process["rlimits"].([]any); len(limits) == 0 {
		process["rlimits"] = []any{object{"type": "RLIMIT_NOFILE", "soft": softOpenFiles, "hard": hardOpenFiles}}
	}
	if size.GetRows() > 0 && size.GetColumns() > 0 && process.boolean("terminal") {
		process["consoleSize"] = object{"height": size.Rows, "width": size.Columns}
	}
	return nil
}

// completeUser writes the user's ids into the process and returns its home folder.
func completeUser(to object, root *files.Root, user string) (home string, err error) {
	read := func(name string) ([]byte, error) {
		content, _, err := root.ReadFile(name, files.Limit)
		return content, err
	}
	if user == "" {
		uid, _ := to.number("uid")
		return account.Home(read, uid), nil
	}
	found, err := account.Resolve(read, user)
	if err != nil {
		return "", err
	}
	to["uid"], to["gid"] = found.UID, found.GID
	// The primary group among them, as docker does since CVE-2022-36109: a set-gid program must not lose it.
	groups := []uint32{found.GID}
	for _, group := range found.Groups {
		if group != found.GID {
			groups = append(groups, group)
		}
	}
	to["additionalGids"] = groups
	return found.Home, nil
}

func hasVariable(env []string, name string) bool {
	for _, variable := range env {
		if strings.HasPrefix(variable, name+"=") {
			return true
		}
	}
	return false
}

// rootPath is the container's root file system, a path of the utility VM.
func rootPath(spec object) (string, error) {
	rootfs := spec.child("root").text("path")
	if !filepath.IsAbs(rootfs) {
		return "", guesterr.Invalid("root.path %q of the specification is not absolute", rootfs)
	}
	return filepath.Clean(rootfs), nil
}

func (o object) marshal() ([]byte, error) {
	text, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode the specification: %w", err)
	}
	return text, nil
}
