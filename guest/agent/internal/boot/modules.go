package boot

import (
	"bufio"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// The kernel modules of the image, and the file that lists them in the order in which they must be loaded: a file name a
// line.
const (
	modulesFolder = "/lib/modules/lcow"
	modulesOrder  = modulesFolder + "/order"
)

// LoadModules loads the modules of the image. One that fails is logged: the machine may do without it.
func LoadModules(log *slog.Logger) {
	order, err := os.Open(modulesOrder)
	if err != nil {
		// A kernel with everything built in needs no modules.
		if !errors.Is(err, os.ErrNotExist) {
			log.Error("read the list of modules", "error", err)
		}
		return
	}
	defer order.Close()
	lines := bufio.NewScanner(order)
	for lines.Scan() {
		name := strings.TrimSpace(lines.Text())
		if name == "" {
			continue
		}
		if err := loadModule(filepath.Join(modulesFolder, filepath.Base(name))); err != nil {
			log.Error("load module", "module", name, "error", err)
		}
	}
	if err := lines.Err(); err != nil {
		log.Error("read the list of modules", "error", err)
	}
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return os.NewSyscallError("finit_module", err)
	}
	return nil
}
