//go:build linux

// These tests need swtee, which is for Linux, as their platform.

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/swtee"
)

// desk is an owner's directory and the program, with an emulated platform as the host:
// sessions, launches and measurements are real except for the chip's keys.
type desk struct {
	t        *testing.T
	platform *swtee.Platform
	in       string // standard input of the next command
}

var sharedPlatform = sync.OnceValues(func() (*swtee.Platform, error) {
	dir, err := os.MkdirTemp("", "latchkey-test-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	return swtee.OpenPlatform(dir)
})

const imageSize = 256 << 10

func newDesk(t *testing.T) *desk {
	t.Helper()
	p, err := sharedPlatform()
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t, platform: p}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil { // the umask may leave it to the group
		t.Fatal(err)
	}
	t.Chdir(dir)
	d.write("root.pem", string(p.RootPEM()))
	d.write("cek.cert", string(p.SignedCEK()))
	d.write("OVMF.fd", string(ovmftest.AmdSev(ovmftest.Size(imageSize), ovmftest.ResetVector())))
	d.write("generic.fd", string(ovmftest.Generic(ovmftest.Size(imageSize), ovmftest.ResetVector())))
	d.write("vmlinuz", string(ovmftest.Kernel()))
	d.write("initrd", "an initrd")
	d.write("passphrase", "correct horse")
	d.writeJSON("platform.json", exchange.Platform{
		Schema: exchange.PlatformSchema, Emulated: true,
		PDH: p.Chain().PDH.Bytes(), CertChain: p.Chain().Bytes(), CPU0ID: p.ID(),
	})
	return d
}

func (d *desk) write(name, text string) {
	d.t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

func (d *desk) writeJSON(name string, v any) {
	d.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		d.t.Fatal(err)
	}
	d.write(name, string(b))
}

func (d *desk) read(name string) []byte {
	d.t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

// try runs a command line of words separated by blanks.
func (d *desk) try(line string) (code cli.ExitCode, out, errs string) {
	d.t.Helper()
	var stdout, stderr bytes.Buffer
	s := &cli.IO{In: strings.NewReader(d.in), Out: &stdout, Err: &stderr, Name: "latchkey"}
	code = newApp(s).Main(append([]string{"latchkey"}, strings.Fields(line)...))
	return code, stdout.String(), stderr.String()
}

// run is try for a command that must succeed.
func (d *desk) run(line string) (out, errs string) {
	d.t.Helper()
	code, out, errs := d.try(line)
	if code != cli.ExitOK {
		d.t.Fatalf("latchkey %s: code %d, want 0: %s", line, code, errs)
	}
	return out, errs
}

// refused is try for a command that must fail with a code and a text that a pattern
// matches, and print nothing as a result.
func (d *desk) refused(line string, code cli.ExitCode, pattern string) {
	d.t.Helper()
	got, out, errs := d.try(line)
	if got != code || !regexp.MustCompile(pattern).MatchString(errs) {
		d.t.Errorf("latchkey %s: code %d, want %d: %s\nwant %s", line, got, code, errs, pattern)
	}
	if out != "" {
		d.t.Errorf("latchkey %s: an error prints %q as its result", line, out)
	}
}

// session makes a session with a name, and with more options.
func (d *desk) session(name string, more ...string) {
	d.t.Helper()
	d.run("session --platform platform.json --cek cek.cert --trust-root root.pem --out . --name " + name + " " +
		strings.Join(more, " "))
}

// launched is a guest that the platform holds.
type launched struct {
	*swtee.Guest
	measurement exchange.Measurement
}

// launch starts a guest with a session on the platform, loads the image and, if a
// kernel is given, its hashes, and writes the host's measurement to measurement.json.
func (d *desk) launch(name string, policy sev.Policy, image []byte, kernel *sev.KernelHashes) *launched {
	d.t.Helper()
	g := swtee.NewFirmware(d.platform).NewGuest()
	command := swtee.CmdInit
	es := policy&sev.PolicyES != 0
	if es {
		command = swtee.CmdInit2
	}
	err := errors.Join(
		g.Init(command, es, 0),
		g.LaunchStart(policy, d.base64(name+".godh"), d.base64(name+".session")),
		g.LaunchUpdateData(0xffc00000, image),
	)
	claims := exchange.Claims{Firmware: sha256Of(image), Kernel: kernel}
	if kernel != nil {
		table := kernel.Table()
		err = errors.Join(err, g.LaunchUpdateData(0x810c00, table[:]))
	}
	if es {
		err = errors.Join(err, g.LaunchUpdateVMSA([]swtee.RegisterPage{{VMSA: registerPage(d.t, image)}}))
	}
	m, e := g.LaunchMeasure()
	if err := errors.Join(err, e); err != nil {
		d.t.Fatal(err)
	}
	l := &launched{g, exchange.Measurement{
		Schema: exchange.MeasurementSchema, Name: "vm", Technology: "sev", Emulated: true,
		Firmware: swtee.FirmwareBuild(), Policy: policy, Measurement: m.Bytes(), Claims: &claims,
	}}
	d.writeJSON("measurement.json", l.measurement)
	return l
}

func (d *desk) base64(name string) []byte {
	d.t.Helper()
	b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(d.read(name))))
	if err != nil {
		d.t.Fatal(err)
	}
	return b
}

func (d *desk) kernelHashes(kernel, initrd, cmdline string) *sev.KernelHashes {
	d.t.Helper()
	h, err := sev.HashKernelFiles(kernel, firstboot.Initrd{File: initrd}, cmdline)
	if err != nil {
		d.t.Fatal(err)
	}
	return &h
}

func registerPage(t *testing.T, image []byte) []byte {
	t.Helper()
	layout, err := launch.LayoutOf(parse(t, image))
	if err != nil {
		t.Fatal(err)
	}
	milan, err := launch.ParseCPU("EPYC-Milan")
	if err != nil {
		t.Fatal(err)
	}
	page, err := launch.RegisterPage(launch.Inputs{
		Technology: launch.SEVES, Firmware: layout, CPU: milan, VCPUs: 1,
	}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return page
}

// row returns the text after a title in a table.
func row(t *testing.T, table, title string) string {
	t.Helper()
	lines := strings.Split(table, "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, title) })
	if i < 0 {
		t.Fatalf("no row %q in\n%s", title, table)
	}
	return strings.TrimSpace(strings.TrimPrefix(lines[i], title))
}

func sha256Of(b []byte) [32]byte { return sha256.Sum256(b) }

func parse(t *testing.T, image []byte) *ovmf.Image {
	t.Helper()
	img, err := ovmf.Parse(image)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }

func matches(t *testing.T, what, got string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		if !regexp.MustCompile(p).MatchString(got) {
			t.Errorf("%s: %q, want %s", what, got, p)
		}
	}
}

// topDir is the module's directory: tests run elsewhere.
var topDir = func() string {
	dir, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return dir
}()
