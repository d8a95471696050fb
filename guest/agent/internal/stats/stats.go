// Package stats reads what containers and the utility VM use, from control groups and /proc.
package stats

import (
	"bufio"
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"lcow.dev/agent/internal/guestpb"
)

// Container reads what a container uses. pid is its init, for its network; 0 when it has ended. What a kernel does not tell
// is 0.
func Container(cgroup string, pid int) *guestpb.StatsResponse {
	s := &guestpb.StatsResponse{
		CpuUsageNanos:    keyed(filepath.Join(cgroup, "cpu.stat"), "usage_usec") * 1000,
		MemoryUsageBytes: single(filepath.Join(cgroup, "memory.current")),
		MemoryLimitBytes: single(filepath.Join(cgroup, "memory.max")),
		Pids:             single(filepath.Join(cgroup, "pids.current")),
		OomKills:         keyed(filepath.Join(cgroup, "memory.events"), "oom_kill"),
	}
	if s.MemoryLimitBytes == math.MaxUint64 {
		// No limit of its own: the machine's.
		s.MemoryLimitBytes = memory("MemTotal")
	}
	content, _ := os.ReadFile(filepath.Join(cgroup, "io.stat"))
	s.BlockReadBytes, s.BlockWriteBytes = parseIO(content)
	if pid > 0 {
		content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
		s.NetworkReceiveBytes, s.NetworkTransmitBytes = parseNetwork(content)
	}
	return s
}

// Machine reads what the utility VM uses as a whole.
func Machine() *guestpb.StatsResponse {
	const root = "/sys/fs/cgroup"
	total := memory("MemTotal")
	s := &guestpb.StatsResponse{
		CpuUsageNanos:    keyed(filepath.Join(root, "cpu.stat"), "usage_usec") * 1000,
		MemoryUsageBytes: total - min(total, memory("MemAvailable")),
		MemoryLimitBytes: total,
		OomKills:         keyed("/proc/vmstat", "oom_kill"),
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		s.Pids = uint64(info.Procs)
	}
	content, _ := os.ReadFile(filepath.Join(root, "io.stat"))
	s.BlockReadBytes, s.BlockWriteBytes = parseIO(content)
	content, _ = os.ReadFile("/proc/net/dev")
	s.NetworkReceiveBytes, s.NetworkTransmitBytes = parseNetwork(content)
	return s
}

// single reads a file of one number; "max" is the largest.
func single(path string) uint64 {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	text := strings.TrimSpace(string(content))
	if text == "max" {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// keyed reads the number of a key in a file of lines "key number".
func keyed(path, key string) uint64 {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), key+" "); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			return n
		}
	}
	return 0
}

// memory reads a field of /proc/meminfo in bytes.
func memory(field string) uint64 {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), field+":"); ok {
			n, _ := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			return n * 1024
		}
	}
	return 0
}

// parseIO adds up the bytes of all devices in an io.stat: lines of "8:0 rbytes=1 wbytes=2 ...".
func parseIO(content []byte) (read, written uint64) {
	for field := range strings.FieldsSeq(string(content)) {
		key, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch key {
		case "rbytes":
			read += n
		case "wbytes":
			written += n
		}
	}
	return read, written
}

// parseNetwork adds up the bytes of all interfaces but the loopback in a /proc/net/dev: "eth0: received ... sent ...",
// where the sent bytes are the ninth number.
func parseNetwork(content []byte) (received, sent uint64) {
	lines := bufio.NewScanner(bytes.NewReader(content))
	for lines.Scan() {
		name, numbers, ok := strings.Cut(lines.Text(), ":")
		fields := strings.Fields(numbers)
		if !ok || strings.TrimSpace(name) == "lo" || len(fields) < 9 {
			continue
		}
		in, _ := strconv.ParseUint(fields[0], 10, 64)
		out, _ := strconv.ParseUint(fields[8], 10, 64)
		received += in
		sent += out
	}
	return received, sent
}
