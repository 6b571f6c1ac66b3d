package sdnotify

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// firstFD is the first descriptor that a service manager passes (sd_listen_fds(3)).
const firstFD = 3

// Listeners are the sockets that a service manager passed to this process, by name; nil for none.
// It must be called before FromEnv, which removes the variables that tell.
func Listeners() (map[string][]net.Listener, error) {
	pid, err := strconv.Atoi(os.Getenv("LISTEN_PID"))
	if err != nil || pid != os.Getpid() {
		return nil, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil || n < 0 || n > 64 {
		return nil, fmt.Errorf("LISTEN_FDS=%s: must be a small number", os.Getenv("LISTEN_FDS"))
	}
	return listenersFrom(firstFD, n, os.Getenv("LISTEN_FDNAMES"))
}

// listenersFrom makes listeners of descriptors. Names are separated by colons.
func listenersFrom(first, n int, names string) (found map[string][]net.Listener, err error) {
	found = map[string][]net.Listener{}
	each := strings.Split(names, ":")
	for i := range n {
		name := ""
		if i < len(each) {
			name = each[i]
		}
		f := os.NewFile(uintptr(first+i), name)
		l, err := net.FileListener(f)
		_ = f.Close() // FileListener has one of its own
		if err != nil {
			return nil, fmt.Errorf("socket %d that the service manager passed: %w", first+i, err)
		}
		found[name] = append(found[name], l)
	}
	return found, nil
}
