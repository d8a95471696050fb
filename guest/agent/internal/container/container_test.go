package container

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/files"
	"lcow.dev/agent/internal/guesterr"
	"lcow.dev/agent/internal/guestpb"
)

func TestRuntimesWordsBecomeReasons(t *testing.T) {
	for message, want := range map[string]guesterr.Reason{
		"executable file `nosuch` not found in $PATH: No such file or directory":                 guestpb.GuestError_COMMAND_NOT_FOUND,
		"open executable: Permission denied":                                                     guestpb.GuestError_COMMAND_NOT_EXECUTABLE,
		"open executable: Operation not permitted":                                               guestpb.GuestError_COMMAND_NOT_EXECUTABLE,
		"open executable: No such file or directory":                                             guestpb.GuestError_COMMAND_NOT_FOUND,
		"exec container process (missing dynamic library?) `/script`: No such file or directory": guestpb.GuestError_COMMAND_NOT_FOUND,
		"exec container process `/garbage`: Exec format error":                                   guestpb.GuestError_COMMAND_NOT_EXECUTABLE,
		"exec: No such file or directory":                                                        guestpb.GuestError_COMMAND_NOT_FOUND,
		"exec: Exec format error":                                                                guestpb.GuestError_COMMAND_NOT_EXECUTABLE,
		"chdir `/bin/busybox`: Not a directory":                                                  guestpb.GuestError_BAD_WORKING_DIRECTORY,
		"chdir `/missing`: No such file or directory":                                            guestpb.GuestError_BAD_WORKING_DIRECTORY,
		"mount `proc` to `proc`: Operation not permitted":                                        guestpb.GuestError_RUNTIME_FAILED,
		"": guestpb.GuestError_RUNTIME_FAILED,
	} {
		if err := runtimeError("create", 1, message); guesterr.ReasonOf(err) != want || !strings.Contains(err.Error(), message) {
			t.Errorf("%q: %v", message, err)
		}
	}
}

func TestErrnoOfTheRuntimesWordsGoesAlong(t *testing.T) {
	err := runtimeError("create", 1, "mount `x`: Device or resource busy")
	var errno syscall.Errno
	if !errors.As(err, &errno) || errno != unix.EBUSY {
		t.Fatal(err, errno)
	}
}

func TestFailedExecutionIsFoundInTheLogOrInTheProgramsPlace(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	line := `{"msg":"exec: Exec format error","level":"error","time":"2026-01-01T00:00:00Z"}`
	if err := os.WriteFile(log, []byte(`{"msg":"some warning","level":"warning"}`+"\n"+line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		log, early string
		want       guesterr.Reason
	}{
		"log":            {log, "", guestpb.GuestError_COMMAND_NOT_EXECUTABLE},
		"error output":   {"/none", "exec container process `/x`: No such file or directory\n", guestpb.GuestError_COMMAND_NOT_FOUND},
		"JSON":           {"/none", `{"msg":"exec container process: No such file or directory"}` + "\n", guestpb.GuestError_COMMAND_NOT_FOUND},
		"with colours":   {"/none", "\x1b[1;31m{\"msg\":\"exec container process: No such file or directory\"}\x1b[0m\r\n", guestpb.GuestError_COMMAND_NOT_FOUND},
		"nothing at all": {"/none", "", guestpb.GuestError_COMMAND_NOT_EXECUTABLE},
	} {
		if err := executeError("start", c.log, []byte(c.early)); guesterr.ReasonOf(err) != c.want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func root(t *testing.T) *files.Root {
	t.Helper()
	folder := t.TempDir()
	for name, content := range map[string]string{
		"passwd": "root:x:0:0::/root:\nbob:x:1000:1001::/home/bob:\n", "group": "staff:x:50:bob\n",
	} {
		if err := os.MkdirAll(filepath.Join(folder, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(folder, "etc", name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r, err := files.OpenRoot(folder)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func complete(t *testing.T, text, user string, size *guestpb.ConsoleSize) (map[string]any, error) {
	t.Helper()
	process, err := parseObject("process", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := completeProcess(process, root(t), user, size); err != nil {
		return nil, err
	}
	encoded, err := process.marshal()
	if err != nil {
		t.Fatal(err)
	}
	var plain map[string]any
	if err := json.Unmarshal(encoded, &plain); err != nil {
		t.Fatal(err)
	}
	return plain, nil
}

func TestProcessIsCompletedAndTheRestKeptAsItCame(t *testing.T) {
	got, err := complete(t, `{"args":["sh"],"env":["A=b"],"terminal":true,"user":{"uid":5,"umask":18,"additionalGids":[7]},
		"ioPriority":{"class":"IOPRIO_CLASS_IDLE"},"oomScoreAdj":12345678901234567}`, "bob", &guestpb.ConsoleSize{Rows: 10, Columns: 20})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"args": []any{"sh"}, "env": []any{"A=b", "HOME=/home/bob"}, "terminal": true, "cwd": "/",
		"user":        map[string]any{"uid": 1000.0, "gid": 1001.0, "additionalGids": []any{1001.0, 50.0}, "umask": 18.0},
		"ioPriority":  map[string]any{"class": "IOPRIO_CLASS_IDLE"},
		"oomScoreAdj": 12345678901234567.0,
		"consoleSize": map[string]any{"height": 10.0, "width": 20.0},
		"rlimits":     []any{map[string]any{"type": "RLIMIT_NOFILE", "soft": 1024.0, "hard": 1048576.0}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\nwant %v", got, want)
	}
}

func TestWhatTheHostSaysStays(t *testing.T) {
	got, err := complete(t, `{"args":["sh"],"env":["HOME=/x"],"cwd":"/w","user":{"uid":1000,"gid":3},"rlimits":[{"type":"RLIMIT_CORE"}]}`, "", &guestpb.ConsoleSize{Rows: 1, Columns: 1})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"args": []any{"sh"}, "env": []any{"HOME=/x"}, "cwd": "/w", "user": map[string]any{"uid": 1000.0, "gid": 3.0},
		"rlimits": []any{map[string]any{"type": "RLIMIT_CORE"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%v\nwant %v", got, want)
	}
	if got, err = complete(t, `{"args":["sh"],"user":{"uid":1000}}`, "", nil); err != nil || !reflect.DeepEqual(got["env"], []any{"HOME=/home/bob"}) {
		t.Fatal(got, err)
	}
}

func TestImpossibleProcessesAreRefused(t *testing.T) {
	for text, want := range map[string]guesterr.Reason{
		`{}`:                          guestpb.GuestError_COMMAND_NOT_FOUND,
		`{"args":[""]}`:               guestpb.GuestError_COMMAND_NOT_FOUND,
		`{"args":["sh"],"cwd":"rel"}`: guestpb.GuestError_BAD_WORKING_DIRECTORY,
	} {
		if _, err := complete(t, text, "", nil); guesterr.ReasonOf(err) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := complete(t, `{"args":["sh"]}`, "nobody", nil); guesterr.ReasonOf(err) != guestpb.GuestError_NO_SUCH_USER {
		t.Fatal(err)
	}
	for _, text := range []string{"", "null", "[]", `"x"`, "{"} {
		if _, err := parseObject("spec_json", []byte(text)); err == nil {
			t.Errorf("%q was taken for an object", text)
		}
	}
}

func TestInitIsSparedSignalsItNeitherCatchesNorBlocks(t *testing.T) {
	status := func(pids, caught, blocked string) []byte {
		return []byte("Name:\tsh\nNSpid:\t" + pids + "\nSigBlk:\t" + blocked + "\nSigCgt:\t" + caught + "\n")
	}
	const none, term = "0000000000000000", "0000000000004000"
	for _, c := range []struct {
		status []byte
		signal syscall.Signal
		want   signalFate
	}{
		{status("300\t1", none, none), unix.SIGTERM, signalDropped},
		{status("300\t1", term, none), unix.SIGTERM, signalTaken},
		{status("300\t1", none, term), unix.SIGTERM, signalBlocked},
		{status("300\t1", term, none), unix.SIGHUP, signalDropped},
		{status("300\t7", none, none), unix.SIGTERM, signalTaken},
		{status("300", none, none), unix.SIGTERM, signalTaken},
		{status("300\t1", "8000000000000000", none), 64, signalTaken},
	} {
		if got := fateOfSignal(c.status, c.signal); got != c.want {
			t.Errorf("%q signal %d: %v", c.status, c.signal, got)
		}
	}
	sent := 0
	send := func() error { sent++; return nil }
	if delivered, err := signalTelling(1<<22, unix.SIGKILL, send); !delivered || err != nil || sent != 1 {
		t.Fatalf("SIGKILL always arrives: %v %v, sent %d", delivered, err, sent)
	}
}

func TestPidNamespaceOfItsOwnIsRecognised(t *testing.T) {
	for text, want := range map[string]bool{
		`{"linux":{"namespaces":[{"type":"mount"},{"type":"pid"}]}}`:        true,
		`{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}`: false,
		`{"linux":{"namespaces":[{"type":"mount"}]}}`:                       false,
		`{}`: false,
	} {
		spec, err := parseObject("spec", []byte(text))
		if err != nil || hasOwnPids(spec) != want {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := rootPath(object{"root": map[string]any{"path": "relative"}}); err == nil {
		t.Fatal("a relative root was taken")
	}
}
