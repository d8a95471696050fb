package stats

import (
	"math"
	"os"
	"path/filepath"
	"testing"
)

func TestControlGroupFilesAreRead(t *testing.T) {
	folder := t.TempDir()
	for name, content := range map[string]string{
		"cpu.stat":       "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n",
		"memory.current": "4096\n",
		"memory.max":     "8192\n",
		"pids.current":   "3\n",
		"memory.events":  "low 0\noom 4\noom_kill 2\noom_group_kill 1\n",
		"io.stat":        "8:0 rbytes=100 wbytes=7 rios=1 wios=1 dbytes=0 dios=0\n254:0 rbytes=1 wbytes=2\n",
	} {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := Container(folder, 0)
	if s.CpuUsageNanos != 1500000 || s.MemoryUsageBytes != 4096 || s.MemoryLimitBytes != 8192 || s.Pids != 3 ||
		s.OomKills != 2 || s.BlockReadBytes != 101 || s.BlockWriteBytes != 9 {
		t.Fatal(s)
	}
}

func TestNoLimitIsTheMachines(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "memory.max"), []byte("max\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := Container(folder, 0).MemoryLimitBytes; got == 0 || got == math.MaxUint64 {
		t.Fatal(got)
	}
	if got := Container("/no/such/group", 0).CpuUsageNanos; got != 0 {
		t.Fatal(got)
	}
}

func TestNetworkBytesAreAddedUpWithoutTheLoopback(t *testing.T) {
	in, out := parseNetwork([]byte(`Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     500       5    0    0    0     0          0         0      500       5    0    0    0     0       0          0
  eth0:    1000      10    0    0    0     0          0         0     2000      20    0    0    0     0       0          0
  eth1:       1       1    0    0    0     0          0         0        2       1    0    0    0     0       0          0
`))
	if in != 1001 || out != 2002 {
		t.Fatal(in, out)
	}
}

func TestMachineIsRead(t *testing.T) {
	s := Machine()
	if s.MemoryLimitBytes == 0 || s.MemoryUsageBytes == 0 || s.MemoryUsageBytes >= s.MemoryLimitBytes || s.Pids == 0 {
		t.Fatal(s)
	}
}
