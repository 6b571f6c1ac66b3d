package tuntap

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/launcher/internal/procfs"
)

const helperName = "qemu-bridge-helper"

// MayMake reports whether this process may make interfaces, and put them on a bridge.
func MayMake() bool { return procfs.May(unix.CAP_NET_ADMIN) }

// Helper finds the program of a QEMU's that makes an interface for users whom root's bridge.conf
// lets (QEMU, docs/system/devices/net.rst; qemu-bridge-helper.c); "" for none that could: it must
// be root's to run, by its mode or its capabilities.
func Helper(qemu string) string {
	if n, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || n != 0 {
		return ""
	}
	for _, path := range helpers(qemu) {
		info, err := os.Stat(path)
		if err != nil {
			continue
		}
		capable, err := unix.Getxattr(path, "security.capability", nil)
		if info.Mode()&os.ModeSetuid != 0 || err == nil && capable > 0 {
			return path
		}
	}
	return ""
}

// helpers are where it may be: next to the QEMU, by its prefix, or the system's.
func helpers(qemu string) (paths []string) {
	prefixes := []string{"/usr"}
	if real, err := filepath.EvalSymlinks(qemu); err == nil {
		prefixes = append([]string{filepath.Dir(filepath.Dir(real))}, prefixes...)
	}
	for _, p := range prefixes {
		for _, dir := range []string{"lib/qemu", "libexec", "libexec/qemu"} {
			paths = append(paths, filepath.Join(p, dir, helperName))
		}
	}
	return paths
}

// ErrDenied means that bridge.conf does not let this user, or that the helper failed otherwise.
var ErrDenied = errors.New("qemu-bridge-helper refuses")

// helperTimeout bounds the helper, which waits for nothing.
const helperTimeout = 10 * time.Second

// ByHelper has a helper make an interface on a bridge; it is gone with its last descriptor.
func ByHelper(helper, bridge string) (*os.File, error) {
	if !IsBridge(bridge) {
		return nil, fmt.Errorf("bridge %s: %w", bridge, ErrNoBridge)
	}
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "helper")
	cmd := exec.CommandContext(ctx, helper, "--use-vnet", "--fd=3", "--br="+bridge)
	cmd.Env, cmd.ExtraFiles = []string{}, []*os.File{theirs}
	said := &bytes.Buffer{}
	cmd.Stderr = said
	err = cmd.Run()
	_ = theirs.Close()
	if err != nil {
		words := strings.Join(strings.Fields(said.String()), " ")
		return nil, fmt.Errorf("bridge %s: %w: %w: %.500s", bridge, ErrDenied, err, words)
	}
	fd, err := receive(pair[0])
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w: %w", bridge, ErrDenied, err)
	}
	return os.NewFile(uintptr(fd), "tap"), nil
}

// receive takes the one descriptor that a socket's peer, which has ended, sent.
func receive(socket int) (fd int, err error) {
	rights := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, make([]byte, 1), rights, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	if err != nil {
		return 0, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil || len(messages) != 1 {
		return 0, errors.New("it sent no descriptor")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return 0, errors.New("it sent no descriptor")
	}
	return fds[0], nil
}
