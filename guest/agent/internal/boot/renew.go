package boot

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// entropyLimit is the most random bytes that one request may bring.
const entropyLimit = 512

// SetClock sets the wall clock.
func SetClock(unixNanos int64) error {
	now := unix.NsecToTimeval(unixNanos)
	return os.NewSyscallError("settimeofday", unix.Settimeofday(&now))
}

// AddEntropy mixes random bytes into the kernel's pool, credits them, and has the generator use them at once; machines
// cloned of one template would otherwise all go on with the same numbers.
func AddEntropy(entropy []byte) error {
	if len(entropy) > entropyLimit {
		return fmt.Errorf("%d bytes of entropy, the limit is %d", len(entropy), entropyLimit)
	}
	file, err := os.OpenFile("/dev/urandom", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	// struct rand_pool_info of linux/random.h.
	var info struct {
		bits int32
		size int32
		data [entropyLimit]byte
	}
	info.bits = int32(len(entropy)) * 8
	info.size = int32(len(entropy))
	copy(info.data[:], entropy)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return os.NewSyscallError("ioctl(RNDADDENTROPY)", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return os.NewSyscallError("ioctl(RNDRESEEDCRNG)", errno)
	}
	return nil
}

// SetHostname sets the machine's name.
func SetHostname(name string) error {
	return os.NewSyscallError("sethostname", unix.Sethostname([]byte(name)))
}

// SetMachineID writes /etc/machine-id: 32 hexadecimal digits.
func SetMachineID(id string) error {
	if len(id) != 32 {
		return fmt.Errorf("a machine id has 32 digits, not %d", len(id))
	}
	for _, c := range []byte(id) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("a machine id has lower-case hexadecimal digits only")
		}
	}
	if err := os.MkdirAll("/etc", 0o755); err != nil {
		return err
	}
	return os.WriteFile("/etc/machine-id", []byte(id+"\n"), 0o444)
}
