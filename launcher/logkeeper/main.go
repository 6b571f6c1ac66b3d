package logkeeper

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is the whole of the keeper's process, and returns its exit code. The arguments are the
// bound in bytes and, for each log, PIPE:FILE:PATH with the numbers of two descriptors. It ends
// when the VM has, and not before: what is meant for the VM's processes does not concern it.
func Main(args []string) int {
	if len(args) < 2 {
		return 2
	}
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	runtime.GOMAXPROCS(1)
	debug.SetMemoryLimit(8 << 20)
	most, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		return 2
	}
	var logs []*Log
	for _, arg := range args[1:] {
		parts := strings.SplitN(arg, ":", 3)
		if len(parts) < 3 {
			return 2
		}
		from, err1 := strconv.Atoi(parts[0])
		to, err2 := strconv.Atoi(parts[1])
		if errors.Join(err1, err2) != nil {
			return 2
		}
		logs = append(logs, &Log{
			Name: filepath.Base(parts[2]),
			From: os.NewFile(uintptr(from), "pipe"), To: os.NewFile(uintptr(to), parts[2]),
		})
	}
	if len(logs) > 0 { // where a panic would be seen
		_ = unix.Dup3(int(logs[len(logs)-1].To.Fd()), 2, 0)
	}
	Run(logs, most)
	return 0
}
