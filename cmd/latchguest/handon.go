package main

import (
	"errors"
	"io"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/luks"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
	"github.com/vmlatch/vmlatch/firmware/smallfmt"
)

// injected reads the secrets that the host injected for the owner before the guest ran. Only those
// count that the broker of the command line has signed.
func (g *guest) injected(w *exchange.Words, line string, names []string) (map[string]exchange.Secret, error) {
	entries, err := g.entries(line)
	if err != nil {
		return nil, hint(
			smallfmt.Errorf("no secret was injected: %w", err),
			"the host's launch must be measured and given its packet ([broker] in the spec); "+
				"the kernel needs EFI_SECRET",
		)
	}
	envelope, ok := entries[table.GUIDInjected]
	if !ok {
		return nil, hint(errors.New("the secrets that were injected are not signed by the broker"),
			"they must come from the owner's broker (latchkey serve), and not from a packet made by hand")
	}
	signed, err := exchange.InjectedNames(envelope)
	if err != nil {
		return nil, err
	}
	defer func() { // those that were not asked for
		for _, e := range entries {
			if err != nil {
				clear(e)
			}
		}
	}()
	all := map[string][]byte{}
	for _, n := range signed {
		all[n] = entries[table.Named(n)]
	}
	if err := exchange.CheckInjected(envelope, w.Key, w.Name, all); err != nil {
		return nil, smallfmt.Errorf("the secrets that were injected: %w", err)
	}
	values := map[string]exchange.Secret{}
	for _, n := range names {
		v, ok := all[n]
		if !ok {
			return nil, smallfmt.Errorf("the secret %s was not injected", n)
		}
		values[n] = exchange.Secret{Value: v, LUKSHeader: string(all[n+exchange.HeaderSuffix])}
	}
	return values, nil
}

// entries are the secrets in securityfs, or else in the area that the command line names.
func (g *guest) entries(line string) (map[guid.GUID][]byte, error) {
	found := map[guid.GUID][]byte{}
	for _, name := range list(g.coco) {
		id, err := guid.Parse(name)
		if err != nil {
			continue
		}
		file := g.coco + "/" + name
		if found[id], err = readFile(file); err != nil {
			return nil, err
		}
		_ = unix.Unlink(file) // the kernel wipes it, too
	}
	if len(found) > 0 {
		return found, nil
	}
	if area, ok := valueOf(line, "vmlatch.secret="); ok {
		return g.area(area)
	}
	return nil, errors.New("there is none in securityfs")
}

// maxArea bounds the area of secrets, in bytes.
const maxArea = 16 << 10

// area reads a table of secrets from memory, as the firmware left it.
func (g *guest) area(text string) (map[guid.GUID][]byte, error) {
	base, size, ok := strings.Cut(text, "+")
	b, err1 := strconv.ParseInt(base, 0, 64)
	n, err2 := strconv.ParseInt(size, 0, 32)
	if !ok || err1 != nil || err2 != nil || n < 1 || n > maxArea {
		return nil, smallfmt.Errorf("vmlatch.secret=%s: must be BASE+SIZE", text)
	}
	mem, err := open(g.mem, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	buf := make([]byte, n)
	if got, err := unix.Pread(int(mem), buf, b); err != nil || got < len(buf) {
		return nil, smallfmt.Errorf("%s: %d of %d bytes can be read", g.mem, max(got, 0), len(buf))
	}
	return entriesOf(buf)
}

// handOn writes secrets and opens the disk.
func (g *guest) handOn(o *options, values map[string]exchange.Secret, end time.Time) error {
	for name, file := range o.files {
		if file == "" {
			continue
		}
		if err := writeSecret(file, values[name].Value); err != nil {
			return smallfmt.Errorf("secret %s: %w", name, err)
		}
		g.say("secret %s is in %s", name, file)
	}
	if o.disk == "" {
		return nil
	}
	return g.openDisk(o, values[o.disk], end)
}

// writeSecret writes a file that only this user reads, and that is nowhere but in memory.
func writeSecret(name string, b []byte) error {
	dir := parent(name)
	if err := makeDir(dir); err != nil {
		return err
	}
	if err := inMemory(dir); err != nil {
		return err
	}
	f, err := open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

func inMemory(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	if st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		return smallfmt.Errorf("%s is not in memory (tmpfs)", dir)
	}
	return nil
}

// diskTime is how long a disk may take to be there.
const diskTime = 30 * time.Second

// openDisk opens a volume by a copy of its header that is the owner's: what is on the disk may be
// changed by the host at any time, also to a cipher that encrypts nothing.
func (g *guest) openDisk(o *options, s exchange.Secret, end time.Time) error {
	device, err := g.disk(o.device, end)
	if err != nil {
		return err
	}
	defer device.Close()
	header := ""
	switch s.LUKSHeader {
	case "":
		return hint(
			smallfmt.Errorf("the secret %s is not for a disk", o.disk),
			`the policy's release needs kind = "luks"`,
		)
	case exchange.Unchecked:
		g.say("warning: the disk's header is not checked, as the owner wants")
	default:
		if header, err = g.copyHeader(device, s.LUKSHeader); err != nil {
			return err
		}
		defer unix.Unlink(header)
	}
	return g.openVolume(header, o, s.Value)
}

// openVolume opens a volume by a copy of its header, or by the one that it has.
func (g *guest) openVolume(header string, o *options, key []byte) error {
	crypt := g.crypt
	if crypt == nil {
		crypt = cryptsetup
	}
	if err := crypt(header, o.device, o.volume, key); err != nil {
		return hint(smallfmt.Errorf("%s cannot be opened: %w", o.device, err), "is this secret a key of the disk?")
	}
	g.say("%s is open as /dev/mapper/%s", o.device, o.volume)
	return nil
}

func (g *guest) disk(name string, end time.Time) (file, error) {
	f := file(-1)
	err := g.retry(diskTime, end, func() (err error) {
		f, err = open(name, unix.O_RDONLY, 0)
		return err
	})
	if err != nil {
		err = hint(smallfmt.Errorf("the disk is missing: %w", err), "the host's spec needs a [[disk]] for it")
	}
	return f, err
}

// copyHeader copies a volume's header into memory, if it is the owner's; "" takes any, for who
// looks at what it says.
func (g *guest) copyHeader(device io.Reader, want string) (name string, err error) {
	if err := makeDir(g.run); err != nil {
		return "", err
	}
	if err := inMemory(g.run); err != nil {
		return "", err
	}
	name = g.run + "/header"
	_ = unix.Unlink(name)
	f, err := open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	sum, _, err := luks.Copy(f, device)
	err = errors.Join(err, f.Close())
	if got := smallfmt.Hex(sum[:]); err == nil && want != "" && got != want {
		err = hint(smallfmt.Errorf("the disk's header is not the owner's: its SHA-256 is %s", got),
			"if the owner changed it (a new key slot), the policy needs the new hash: latchkey disk header IMAGE")
	}
	if err != nil {
		_ = unix.Unlink(name)
		return "", err
	}
	return name, nil
}

// cryptsetup opens a volume. The key goes through a pipe.
func cryptsetup(header, device, volume string, key []byte) error {
	var program string
	for _, p := range []string{"/usr/sbin/cryptsetup", "/sbin/cryptsetup", "/usr/bin/cryptsetup", "/bin/cryptsetup"} {
		if exists(p) {
			program = p
			break
		}
	}
	if program == "" {
		return errors.New("the initrd has no cryptsetup")
	}
	args := []string{
		program, "open", "--type", "luks", "--key-file", "-", "--keyfile-size", strconv.Itoa(len(key)),
		"--tries", "1",
	}
	if header != "" {
		args = append(args, "--header", header)
	}
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return err
	}
	w := file(pipe[1])
	pid, err := syscall.ForkExec(program, append(args, device, volume), &syscall.ProcAttr{
		Env: environment, Files: []uintptr{uintptr(pipe[0]), 2, 2},
	})
	_ = unix.Close(pipe[0])
	if err != nil {
		_ = w.Close()
		return err
	}
	_, err = w.Write(key) // a pipe holds 64 KiB, which is the longest secret
	_ = w.Close()
	if code := wait(pid); code != 0 && err == nil {
		err = smallfmt.Errorf("cryptsetup ended with code %d", code)
	}
	return err
}

// entriesOf are the entries of a table, by their GUID.
func entriesOf(b []byte) (map[guid.GUID][]byte, error) {
	list, err := table.Parse(b)
	if err != nil {
		return nil, err
	}
	found := map[guid.GUID][]byte{}
	for _, e := range list {
		found[e.GUID] = e.Data
	}
	return found, nil
}
