package tcg

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/internal/front"
	"github.com/vmlatch/vmlatch/qmp"
)

// Options say what to run and how.
type Options struct {
	Argv     []string        // QEMU and its arguments
	Firmware *swtee.Firmware // answers the SEV commands
	// MeasureKernel names a kernel file to measure and to put into the hash table
	// in place of the one that QEMU serves, like a host that swaps the kernel after
	// its measurement. The guest's firmware must notice.
	MeasureKernel string
	Stdin         *os.File
	Stdout        *os.File
	Stderr        *os.File
	Logger        *slog.Logger // what is emulated and when; may be nil
}

// tcg is one running guest.
type machine struct {
	opt   Options
	cmd   *commandLine
	image *ovmf.Image
	qemu  *front.QEMU

	mu    sync.Mutex   // guards guest
	guest *swtee.Guest // nil without a SEV object
}

// errQEMU is an error that QEMU itself would have printed; its text is QEMU's.
type errQEMU struct{ lines []string }

func (e *errQEMU) Error() string { return e.lines[0] }

// print prints it as QEMU would.
func (e *errQEMU) print(w io.Writer, program string) {
	for _, line := range e.lines {
		fmt.Fprintf(w, "%s: %s\n", filepath.Base(program), line)
	}
}

// Run runs QEMU under TCG on the emulated platform until it ends and returns
// its exit code. QEMU dies when the calling process does. The caller must not
// use the calling goroutine's thread otherwise; Run locks it.
func Run(ctx context.Context, opt Options) (int, error) {
	runtime.LockOSThread() // the kernel ties PDEATHSIG to the thread that forks
	if opt.Logger == nil {
		opt.Logger = slog.New(slog.DiscardHandler)
	}
	cmd, err := parseCommandLine(opt.Argv)
	if err != nil {
		return 2, err
	}
	for _, n := range cmd.notes {
		opt.Logger.Info(n)
	}
	t := &machine{opt: opt, cmd: cmd}
	code, err := t.launch(ctx)
	var q *errQEMU
	if errors.As(err, &q) { // as QEMU would: its words, its exit code
		q.print(opt.Stderr, cmd.program)
		return 1, nil
	}
	return code, err
}

func (t *machine) launch(ctx context.Context) (int, error) {
	if t.cmd.key != "" {
		if err := checkKey(t.cmd.key); err != nil {
			return 1, err
		}
	}
	if t.cmd.guest != nil {
		if err := t.launchStart(); err != nil {
			return 1, err
		}
		defer t.guest.Wipe()
	}
	return t.run(ctx)
}

// launchStart does what happens before QEMU builds the machine: LAUNCH_START
// and the measurement of the firmware.
func (t *machine) launchStart() error {
	o := t.cmd.guest
	var owner, blob []byte
	if o.ownerFile != "" {
		var err error
		if owner, err = readBase64(o.ownerFile); err != nil {
			return &errQEMU{[]string{"sev: " + err.Error()}}
		}
		if blob, err = readBase64(o.sessionFile); err != nil {
			return &errQEMU{[]string{"sev: " + err.Error()}}
		}
	}
	t.guest = t.opt.Firmware.NewGuest()
	const failed = "failed to initialize kvm: Operation not permitted"
	if err := t.guest.Init(swtee.CmdInit, false, 0); err != nil {
		return platformRefused("sev_kvm_init: failed to initialize", err, failed)
	}
	err := t.guest.LaunchStart(o.policy, owner, blob)
	t.command("LAUNCH_START", err, "policy", fmt.Sprintf("%#x", uint32(o.policy)), "session", o.sessionFile != "")
	if err != nil {
		return platformRefused("sev_launch_start: LAUNCH_START", err, failed)
	}
	if t.cmd.firmware == "" {
		return errors.New("a SEV guest needs its firmware by -bios or as the first pflash drive, by path")
	}
	b, err := os.ReadFile(t.cmd.firmware)
	if err != nil {
		return &errQEMU{[]string{fmt.Sprintf("could not load PC BIOS '%s'", t.cmd.firmware)}}
	}
	if t.image, err = ovmf.Parse(b); err != nil {
		return err
	}
	err = t.guest.LaunchUpdateData(1<<32-uint64(len(b)), b)
	t.command("LAUNCH_UPDATE_DATA", err, "what", "firmware", "bytes", len(b))
	if err != nil {
		return platformRefused("sev_launch_update_data: LAUNCH_UPDATE", err, "failed to encrypt pflash rom")
	}
	return nil
}

// platformRefused is QEMU's message for a platform command that failed (QEMU,
// target/i386/sev.c), and the message that follows it.
func platformRefused(what string, err error, more ...string) *errQEMU {
	status := swtee.Status(err)
	line := fmt.Sprintf("%s ret=-%d fw_error=%d '%s'", what, int(swtee.Errno(err)), uint32(status), status.Text())
	return &errQEMU{append([]string{line}, more...)}
}

// command logs a firmware command; never its data.
func (t *machine) command(name string, err error, attrs ...any) {
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	t.opt.Logger.Info(name, attrs...)
}

func readBase64(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 64<<10))
	if err != nil {
		return nil, err
	}
	b, err := base64.StdEncoding.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return b, nil
}

// run starts QEMU, finishes the launch and serves the monitors.
func (t *machine) run(ctx context.Context) (int, error) {
	q, err := front.Start(ctx, front.Options{
		Program: t.cmd.program, Args: t.cmd.Args, Stdin: t.opt.Stdin, Stdout: t.opt.Stdout, Stderr: t.opt.Stderr,
	})
	switch {
	case errors.Is(err, front.ErrStart):
		return 127, err
	case errors.Is(err, front.ErrMonitor):
		return 2, err
	case err != nil:
		return 1, err
	}
	t.qemu = q
	// If QEMU ended by itself it has printed why; otherwise the failure is ours.
	failed := t.serve(ctx)
	if errors.Is(failed, qmp.ErrClosed) {
		failed = nil
	} else if failed != nil {
		q.Kill()
	}
	code, err := q.Wait()
	if failed != nil {
		return 1, failed
	}
	return code, err
}

// serve negotiates with every monitor of QEMU, loads and measures the guest,
// and then starts to answer clients. It returns once they can connect.
func (t *machine) serve(ctx context.Context) error {
	if err := t.qemu.Connect(ctx); err != nil {
		return err
	}
	if t.guest != nil {
		if err := t.loadAndMeasure(); err != nil {
			return err
		}
	}
	first := t.qemu.Monitors[0]
	go t.watchResume(first.Subscribe(16, qmp.EventResume))
	t.qemu.Serve(t.handle)
	if t.cmd.paused {
		return nil
	}
	if err := t.launchFinish(); err != nil {
		return err
	}
	return qmp.Cont{}.Execute(ctx, first)
}

// loadAndMeasure adds the kernel hash table to memory and digest, as QEMU does
// when it loads a kernel, and takes the measurement.
func (t *machine) loadAndMeasure() error {
	if t.cmd.guest.kernelHashes && t.cmd.kernel != "" {
		if err := t.loadHashTable(); err != nil {
			return err
		}
	}
	_, err := t.guest.LaunchMeasure()
	digest := t.guest.LaunchDigest()
	t.command("LAUNCH_MEASURE", err, "digest", fmt.Sprintf("%x", digest))
	if err != nil {
		// QEMU goes on without a measurement.
		platformRefused("sev_launch_get_measure: LAUNCH_MEASURE", err).print(t.opt.Stderr, t.cmd.program)
	}
	return nil
}

func (t *machine) loadHashTable() error {
	area, _, err := t.image.HashArea()
	if err != nil {
		return err
	}
	if !sev.HashArea(area).Holds() {
		return fmt.Errorf(
			"SEV: guest firmware hashes table area is invalid (base=%#x size=%#x)",
			area.Base,
			area.Size,
		)
	}
	kernelFile := t.cmd.kernel
	if t.opt.MeasureKernel != "" {
		kernelFile = t.opt.MeasureKernel
	}
	kernel, err := os.ReadFile(kernelFile)
	if err != nil {
		return err
	}
	var initrd []byte
	if t.cmd.initrd != "" {
		if initrd, err = os.ReadFile(t.cmd.initrd); err != nil {
			return err
		}
	}
	hashes, err := sev.HashKernel(bytes.NewReader(kernel), bytes.NewReader(initrd), t.cmd.cmdline)
	if err != nil {
		return err
	}
	measured := hashes.Table()
	if err := t.guest.LaunchUpdateData(uint64(area.Base), measured[:]); err != nil {
		return platformRefused("sev_launch_update_data: LAUNCH_UPDATE", err, "SEV: Failed to encrypt kernel hashes")
	}
	t.command("LAUNCH_UPDATE_DATA", nil, "what", "kernel hashes", "bytes", len(measured))

	// QEMU 10.0 and newer also serve the kernel as it is, and firmware that verifies
	// it takes that (edk2, QemuKernelLoaderFsDxe).
	asItIs, err := t.qemu.Test.HasFile("etc/boot/kernel")
	if err != nil {
		return err
	}
	if asItIs {
		return t.qemu.Test.Write(uint64(area.Base), measured[:])
	}
	// Older ones, without SEV, fill in its setup header. The firmware will not read the
	// file as it is then: the table in memory must cover what it reads.
	setup, err := t.qemu.Test.KernelSetup()
	if err != nil {
		return err
	}
	if len(setup) > len(kernel) {
		return fmt.Errorf("the kernel's setup has %d bytes, its file %d", len(setup), len(kernel))
	}
	served, err := sev.HashKernel(
		io.MultiReader(bytes.NewReader(setup), bytes.NewReader(kernel[len(setup):])),
		nil,
		"",
	)
	if err != nil {
		return err
	}
	hashes.Kernel = served.Kernel
	inMemory := hashes.Table()
	return t.qemu.Test.Write(uint64(area.Base), inMemory[:])
}

// watchResume also ends the launch if the guest is resumed by anything other than a QMP
// client's cont, such as a human monitor.
func (t *machine) watchResume(sub *qmp.Subscription) {
	for {
		e, err := sub.Next(context.Background()) // ends with the connection
		if err != nil || e.Name != qmp.EventResume {
			return
		}
		_ = t.launchFinish() // logged there
	}
}

// launchFinish makes the guest runnable, once.
func (t *machine) launchFinish() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.guest == nil || t.guest.State() == swtee.StateRunning {
		return nil
	}
	err := t.guest.LaunchFinish()
	t.command("LAUNCH_FINISH", err)
	return err
}
