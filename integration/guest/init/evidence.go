package main

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/swtee/guestdev"
	"github.com/vmlatch/vmlatch/firmware/swtee/guestdev/tsmprobe"
	"github.com/vmlatch/vmlatch/firmware/swtee/port"
)

// Words on the kernel command line:
//
//	vmlatch.nonce=HEX     64 bytes over which the guest asks for evidence; zeros if left out
//	vmlatch.by=WAY        configfs-tsm (the default), or sev-guest
//	vmlatch.rtmr3=HEX     48 bytes by which it first extends RTMR3
//	vmlatch.probe         it also shows how configfs-tsm behaves at its edges
//	vmlatch.times=N       it asks N times
//	vmlatch.kernel-tsm    it shows that of the kernel's own instead
//	vmlatch.interface=I   it has these interfaces alone, separated by commas
//	vmlatch.helper=FILE   a program of the initrd makes the interfaces: swtee itself
//	vmlatch.host=TAG      it becomes a host: see host
//	vmlatch.run=FILE      it runs a program of the initrd, which asks in its own way,
//	vmlatch.args=A,B      with these arguments, and shows what it wrote below /run/secrets, and
//	                      whose root file system is on the volume that it opened
const tsmReports = "/sys/kernel/config/tsm/report"

// word is the value of a word on the command line.
func word(cmdline, name string) string {
	for w := range strings.FieldsSeq(cmdline) {
		if v, ok := strings.CutPrefix(w, "vmlatch."+name+"="); ok {
			return v
		}
	}
	return ""
}

// emulated reports whether the platform is an emulated one that gives evidence.
func emulated() bool {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
	return slices.ContainsFunc(names, func(f string) bool {
		b, err := os.ReadFile(f)
		return err == nil && strings.TrimSpace(string(b)) == port.Name
	})
}

// helperName is the argument with which this program serves the interfaces: a process of its own
// must do that.
const helperName = "swtee-guest"

func helper() {
	ready := os.NewFile(3, "ready")
	var opt guestdev.Options
	for _, name := range os.Args[2:] {
		opt.Interfaces = append(opt.Interfaces, guestdev.Interface(name))
	}
	d, err := guestdev.Up(opt)
	if err != nil {
		fmt.Fprintln(ready, err)
		os.Exit(1)
	}
	_, _ = fmt.Fprintf(ready, "ready %v", d.Made)
	_ = ready.Close()
	_ = d.Wait()
}

// startHelper does what "swtee guest" does.
func startHelper(interfaces ...string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", append([]string{helperName}, interfaces...)...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{w}, os.Stderr
	if err = cmd.Start(); err != nil {
		return err
	}
	_ = w.Close()
	b, err := io.ReadAll(r)
	if made, ok := strings.CutPrefix(string(b), "ready "); ok {
		say("interfaces %s", made)
		return nil
	}
	return errors.Join(errors.New(strings.TrimSpace(string(b))), err)
}

// modules loads those of the initrd.
func modules() error {
	files, _ := filepath.Glob("/modules/*.ko")
	slices.Sort(files)
	for _, f := range files {
		fd, err := unix.Open(f, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.FinitModule(fd, "", 0)
			_ = unix.Close(fd)
		}
		if err != nil && err != unix.EEXIST {
			return fmt.Errorf("%s: %w", f, err)
		}
	}
	return nil
}

func evidence(cmdline string) error {
	if !emulated() {
		if tag := word(cmdline, "host"); tag != "" {
			return host(tag, word(cmdline, "run"))
		}
		if program := word(cmdline, "run"); program != "" {
			return runProgram(program, word(cmdline, "args"))
		}
		return nil
	}
	if err := modules(); err != nil {
		return err
	}
	var only []string
	if name := word(cmdline, "interface"); name != "" {
		only = strings.Split(name, ",")
	}
	if program := word(cmdline, "helper"); program != "" {
		cmd := exec.Command(program, "guest")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return err
		}
	} else if err := startHelper(only...); err != nil {
		return err
	}
	if program := word(cmdline, "run"); program != "" {
		return runProgram(program, word(cmdline, "args"))
	}
	var nonce [64]byte
	if b, err := hex.DecodeString(word(cmdline, "nonce")); err == nil {
		copy(nonce[:], b)
	}
	if digest, err := hex.DecodeString(word(cmdline, "rtmr3")); err == nil && len(digest) > 0 {
		const file = "/sys/devices/virtual/misc/tdx_guest/measurements/rtmr3:sha384"
		say("RTMR3 extended: %v", os.WriteFile(file, digest, 0))
	}
	if strings.Contains(cmdline, "vmlatch.probe") {
		for _, l := range append(tsmprobe.Probe(tsmReports), tsmprobe.Levels(tsmReports)...) {
			say("probe %s", l)
		}
	}
	ask := byConfigfs
	if word(cmdline, "by") == "sev-guest" {
		ask = bySEVGuest
	}
	times := 1
	_, _ = fmt.Sscan(word(cmdline, "times"), &times)
	for range times {
		provider, b, err := ask(nonce)
		if err != nil {
			return err
		}
		say("evidence %s %s", provider, base64.StdEncoding.EncodeToString(b))
	}
	return nil
}

// runProgram runs a program of the initrd, and shows the secrets that it wrote by their hash.
func runProgram(program, args string) error {
	cmd := exec.Command(program)
	if args != "" {
		cmd.Args = append(cmd.Args, strings.Split(args, ",")...)
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		return err
	}
	err := show("/run/secrets/*")
	if _, opened := os.Stat(opened); opened == nil && err == nil {
		err = showDisk()
	}
	return err
}

// opened is the volume that a program may have opened.
const opened = "/dev/mapper/root"

// showDisk shows that a root file system lies on it.
func showDisk() error {
	if err := os.MkdirAll("/root", 0o755); err != nil {
		return err
	}
	if err := unix.Mount(opened, "/root", "ext4", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("%s: %w", opened, err)
	}
	b, err := os.ReadFile("/root/etc/hostname")
	say("%s holds the root file system of %s", opened, strings.TrimSpace(string(b)))
	return errors.Join(err, unix.Unmount("/root", 0))
}

// byConfigfs asks as a guest of SEV-SNP or TDX does (Linux,
// Documentation/ABI/testing/configfs-tsm-report).
func byConfigfs(nonce [64]byte) (provider string, report []byte, err error) {
	dir := tsmReports + "/vmlatch"
	if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
		return "", nil, err
	}
	defer os.Remove(dir)
	if err := os.WriteFile(dir+"/inblob", nonce[:], 0); err != nil {
		return "", nil, err
	}
	name, err := os.ReadFile(dir + "/provider")
	if err != nil {
		return "", nil, err
	}
	b, err := os.ReadFile(dir + "/outblob")
	return strings.TrimSpace(string(name)), b, err
}

// bySEVGuest asks by the ioctl of /dev/sev-guest (Linux, include/uapi/linux/sev-guest.h).
func bySEVGuest(nonce [64]byte) (provider string, report []byte, err error) {
	fd, err := unix.Open("/dev/sev-guest", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("/dev/sev-guest: %w", err)
	}
	defer unix.Close(fd)
	var request [96]byte
	var response [4000]byte
	copy(request[:], nonce[:])
	arg := struct {
		version            uint64
		req, rsp, exitinfo uint64
	}{1, uint64(uintptr(unsafe.Pointer(&request))), uint64(uintptr(unsafe.Pointer(&response))), 0}
	const getReport = 0xC0205300
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), getReport, uintptr(unsafe.Pointer(&arg))); e != 0 {
		return "", nil, fmt.Errorf("SNP_GET_REPORT: %w (exitinfo2 %#x)", e, arg.exitinfo)
	}
	const at, size = 32, 0x4a0
	return "/dev/sev-guest", response[at : at+size], nil
}

// firstBoot has latchguest hand on what configures the first boot, and shows it.
func firstBoot() error {
	if _, err := os.Stat("/vmlatch"); err != nil {
		return nil
	}
	cmd := exec.Command("/latchguest", "config")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return errors.Join(cmd.Run(), show("/run/vmlatch/seed/*"), show("/run/credentials/@initrd/*"))
}

// show shows files without what is in them.
func show(pattern string) error {
	files, err := filepath.Glob(pattern)
	for _, f := range files {
		info, e1 := os.Stat(f)
		b, e2 := os.ReadFile(f)
		if err := errors.Join(e1, e2); err != nil {
			return err
		}
		say("file %s: mode %04o, sha256 %x", f, info.Mode().Perm(), sha256.Sum256(b))
	}
	return err
}
