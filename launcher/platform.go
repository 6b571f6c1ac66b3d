package launcher

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/qmp"
)

// QueryPlatform asks the secure processor through a QEMU without a machine,
// which ends with this call.
func QueryPlatform(ctx context.Context, facts Facts) (*exchange.Platform, error) {
	if facts.Emulator == nil && !facts.KVM {
		return nil, fmt.Errorf("%w: reach a secure processor: KVM is not usable: %s", ErrHost, facts.KVMReason)
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	conn, theirs, err := socketpair()
	if err != nil {
		return nil, err
	}
	argv := append(append([]string{}, facts.Emulator...), facts.QEMU,
		"-machine", "none", "-accel", "kvm", "-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control")
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: run QEMU: %v", ErrHost, err)
	}
	caps, err := platformOver(ctx, conn)
	if waitErr := cmd.Wait(); err != nil && stderr.Len() > 0 {
		err = errors.Join(err, fmt.Errorf("QEMU: %s", strings.TrimSpace(stderr.String())), waitErr)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: show a SEV platform: %w", ErrHost, err)
	}
	return &exchange.Platform{
		Schema: exchange.PlatformSchema, Emulated: facts.Emulator != nil, PDH: caps.PDH, CertChain: caps.CertChain,
		CPU0ID: caps.CPU0ID, CBitPos: caps.CBitPos, ReducedPhysBits: caps.ReducedPhysBits,
	}, nil
}

func platformOver(ctx context.Context, nc net.Conn) (caps qmp.SEVCapabilities, err error) {
	conn, err := qmp.NewConn(ctx, nc, qmp.Options{})
	if err != nil {
		return caps, err
	}
	defer conn.Close()
	caps, err = qmp.QuerySEVCapabilities{}.Execute(ctx, conn)
	if e := (qmp.Quit{}).Execute(ctx, conn); e != nil && err == nil && !errors.Is(e, qmp.ErrClosed) {
		err = e
	}
	return caps, err
}
