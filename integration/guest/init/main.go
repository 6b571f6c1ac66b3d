// Command init is the test guest: PID 1 of a Linux that proves that it received
// the launch secret. It prints the SHA-256 of each secret, never the secret,
// and powers off. On an emulated platform that gives evidence it also asks for that, as a
// guest on silicon does, and prints it.
//
// It looks in securityfs (secrets/coco, kernels with efi_secret) first, then in
// the area that the kernel command line names as vmlatch.secret=BASE+SIZE. The
// command line is measured, so a host cannot point it elsewhere.
package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
)

const coco = "/sys/kernel/security/secrets/coco"

func main() {
	if len(os.Args) > 1 && os.Args[1] == helperName {
		helper()
		return
	}
	mount()
	cmdline, _ := os.ReadFile("/proc/cmdline")
	version, _ := os.ReadFile("/proc/version")
	say("up: %s", strings.TrimSpace(string(version)))
	entries, where, err := secrets(string(cmdline))
	switch {
	case err != nil:
		say("no secret: %v", err)
	default:
		for _, e := range entries {
			say("secret %v: %d bytes, sha256 %x, from %s", e.GUID, len(e.Data), sha256.Sum256(e.Data), where)
		}
	}
	if strings.Contains(string(cmdline), "vmlatch.modules") {
		if err := modules(); err != nil {
			say("no modules: %v", err)
		}
	}
	report()
	if err := firstBoot(); err != nil {
		say("no configuration: %v", err)
	}
	for word := range strings.FieldsSeq(string(cmdline)) {
		if disk, ok := strings.CutPrefix(word, "vmlatch.fill="); ok {
			say("disk %s: %s", disk, fill("/dev/"+disk))
		}
		if tag, ok := strings.CutPrefix(word, "vmlatch.mount="); ok {
			say("share %s: %s", tag, share(tag))
		}
	}
	if err := networking(string(cmdline)); err != nil {
		say("no network: %v", err)
	}
	if wantsTPM(string(cmdline)) {
		if err := showTPM(); err != nil {
			say("no TPM: %v", err)
		}
	}
	if wantsKernelTSM(string(cmdline)) {
		if err := kernelTSM(); err != nil {
			say("no configfs-tsm: %v", err)
		}
	} else if err := evidence(string(cmdline)); err != nil {
		say("no evidence: %v", err)
	}
	if strings.Contains(string(cmdline), "vmlatch.stay") {
		say("staying up")
		stay()
	}
	say("powering off")
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		say("power off: %v", err)
	}
	time.Sleep(time.Hour)
}

func say(format string, args ...any) { fmt.Printf("vmlatch-guest: "+format+"\n", args...) }

func mount() {
	for _, m := range []struct{ kind, dir string }{
		{"devtmpfs", "/dev"},
		{"proc", "/proc"},
		{"sysfs", "/sys"},
		{"securityfs", "/sys/kernel/security"},
		{"cgroup2", "/sys/fs/cgroup"},
	} {
		_ = unix.Mount(m.kind, m.dir, m.kind, 0, "")
	}
	// The kernel opens /dev/console for init only if the initrd has it.
	if console, err := os.OpenFile("/dev/console", os.O_RDWR, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup2(int(console.Fd()), fd)
		}
	}
}

func secrets(cmdline string) ([]table.Entry, string, error) {
	if files, _ := filepath.Glob(coco + "/*"); len(files) > 0 {
		var entries []table.Entry
		for _, f := range files {
			guid, err := sev.ParseGUID(filepath.Base(f))
			if err != nil {
				continue
			}
			data, err := os.ReadFile(f)
			if err != nil {
				return nil, "", err
			}
			entries = append(entries, table.Entry{GUID: guid, Data: data})
		}
		return entries, "securityfs", nil
	}
	for word := range strings.FieldsSeq(cmdline) {
		if area, ok := strings.CutPrefix(word, "vmlatch.secret="); ok {
			entries, err := fromMemory(area)
			return entries, "memory at " + area, err
		}
	}
	return nil, "", errors.New("neither securityfs nor vmlatch.secret= on the command line")
}

func fromMemory(area string) ([]table.Entry, error) {
	base, size, ok := strings.Cut(area, "+")
	b, err1 := strconv.ParseInt(base, 0, 64)
	n, err2 := strconv.ParseInt(size, 0, 32)
	if !ok || err1 != nil || err2 != nil || n > session.MaxSecret {
		return nil, fmt.Errorf("vmlatch.secret=%s: must be BASE+SIZE", area)
	}
	mem, err := os.Open("/dev/mem")
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	buf := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(mem, b, n), buf); err != nil {
		return nil, err
	}
	return table.Parse(buf)
}

// report prints the devices that the guest sees, for tests of plain VMs.
func report() {
	disks, _ := filepath.Glob("/sys/block/*")
	for _, d := range disks {
		size, _ := os.ReadFile(filepath.Join(d, "size"))
		say("disk %s: %s sectors", filepath.Base(d), strings.TrimSpace(string(size)))
	}
	pci, _ := filepath.Glob("/sys/bus/pci/devices/*")
	for _, p := range pci {
		vendor, _ := os.ReadFile(filepath.Join(p, "vendor"))
		device, _ := os.ReadFile(filepath.Join(p, "device"))
		say("pci %s %s", strings.TrimSpace(string(vendor)), strings.TrimSpace(string(device)))
	}
	strings11, _ := filepath.Glob("/sys/firmware/dmi/entries/11-*/raw")
	for _, name := range strings11 {
		b, _ := os.ReadFile(name)
		for _, text := range strings.Split(string(b), "\x00") {
			if _, value, ok := strings.Cut(text, "io.systemd.credential"); ok {
				say("credential %s", value)
			}
		}
	}
	for _, d := range disks {
		label := make([]byte, 32)
		f, err := os.Open("/dev/" + filepath.Base(d))
		if err != nil {
			continue
		}
		if _, err := f.ReadAt(label, 0x8028); err == nil { // ISO 9660
			if text := strings.TrimRight(string(label), "\x00 "); text != "" {
				say("disk %s is labelled %s", filepath.Base(d), text)
			}
		}
		_ = f.Close()
	}
	if ifs, err := net.Interfaces(); err == nil {
		for _, i := range ifs {
			say("interface %s", i.Name)
		}
	}
}

// stay waits for the power button; without acpid the kernel reports it as an
// input event, which is enough to know that it was pressed.
func stay() {
	events, _ := filepath.Glob("/dev/input/event*")
	pressed := make(chan struct{}, 1)
	for _, e := range events {
		go func() {
			f, err := os.Open(e)
			if err != nil {
				return
			}
			buf := make([]byte, 24)
			if _, err := io.ReadFull(f, buf); err == nil {
				pressed <- struct{}{}
			}
		}()
	}
	echo := make([]byte, 256)
	go func() {
		for {
			n, err := os.Stdin.Read(echo)
			if err != nil || n == 0 {
				return
			}
			say("heard %q", echo[:n])
		}
	}()
	<-pressed
}

// share mounts a directory of the host's, and says what its file "hello" holds and what became of
// writing "answer".
func share(tag string) string {
	dir := "/" + tag
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err.Error()
	}
	if err := unix.Mount(tag, dir, "virtiofs", 0, ""); err != nil {
		return err.Error()
	}
	b, err := os.ReadFile(dir + "/hello")
	if err != nil {
		return err.Error()
	}
	said := strings.TrimSpace(string(b))
	if err := os.WriteFile(dir+"/answer", b, 0o600); err != nil {
		return said + ", " + err.Error()
	}
	return said + ", written"
}

// fill writes a disk from its beginning to its end.
func fill(name string) string {
	f, err := os.OpenFile(name, os.O_WRONLY|unix.O_SYNC, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	block := []byte(strings.Repeat("full", 1<<16))
	for n := 0; ; n += len(block) {
		switch _, err := f.Write(block); {
		case errors.Is(err, unix.ENOSPC): // its end
			return fmt.Sprintf("full after %d KiB", n>>10)
		case err != nil:
			return err.Error()
		}
	}
}
