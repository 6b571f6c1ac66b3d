package main

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/swtee"
)

// try runs the program, with the emulated chip's keys in a directory.
func try(platform string, args ...string) (code cli.ExitCode, out, errs string) {
	var stdout, stderr bytes.Buffer
	s := &cli.IO{In: strings.NewReader(""), Out: &stdout, Err: &stderr, Name: "swtee"}
	if platform != "" {
		args = append([]string{"--platform", platform}, args...)
	}
	code = newApp(s).Main(append([]string{"swtee"}, args...))
	return code, stdout.String(), stderr.String()
}

func TestRoot(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "chip")
	code, out, errs := try("", "root", "--platform", dir)
	if code != cli.ExitOK {
		t.Fatalf("code %d, want 0: %s", code, errs)
	}
	block, _ := pem.Decode([]byte(out))
	if block == nil || block.Type != swtee.RootPEMType || !strings.HasPrefix(block.Headers["Emulated"], "yes") {
		t.Errorf("it printed %q, want a PEM block %q that says emulated", out, swtee.RootPEMType)
	}
	if _, again, _ := try("", "root", "--platform", dir); again != out {
		t.Error("the second root differs from the first, want one platform")
	}
	if err := os.WriteFile(filepath.Join(dir, "platform.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs = try("", "root", "--platform", dir)
	want := "remove " + dir + "/platform.json to have a new platform made"
	if code != cli.ExitFailure || !strings.Contains(errs, want) {
		t.Errorf("a damaged platform: code %d, %q, want %d, %q", code, errs, cli.ExitFailure, want)
	}
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("HOME", "")
	code, _, errs = try("", "root")
	if code != cli.ExitFailure || !strings.Contains(errs, "hint: name a directory with --platform") {
		t.Errorf("without a home: code %d, %q, want %d and a hint", code, errs, cli.ExitFailure)
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, c := range []struct {
		args string
		want string
	}{
		{"", `no QEMU command line given\nhint: usage: swtee \[OPTIONS\] --`},
		{"root more", `unexpected argument "more"`},
		{"--acel tcg -- qemu", `no option --acel\nhint: did you mean --accel\?`},
		{"--accel tgc -- qemu", `--accel: unknown accelerator "tgc": did you mean "tcg"\?`},
		{"--accel tcg --fake-kvm -- qemu", `exclude each other`},
		{"--fake-kvm --measure-kernel k -- qemu", `--measure-kernel works with --accel twin and tcg only`},
		{
			"--accel tcg --fault LAUNCH_STRAT=reset -- qemu",
			`--fault "LAUNCH_STRAT=reset": unknown command "LAUNCH_STRAT": did you mean "LAUNCH_START"\?`,
		},
		{
			"--accel tcg --fault LAUNCH_START=BAD_MEASURMENT -- qemu",
			`unknown fault "BAD_MEASURMENT": did you mean "BAD_MEASUREMENT"\?`,
		},
		{
			"--accel tcg --fault LAUNCH_START=delay:5 -- qemu",
			`delay "5": must be a duration with its unit`,
		},
		{"--accel tcg --report " + dir + " -- qemu", `--report .*: is a directory`},
		{"--accel tcg --report " + dir + "/x/y -- qemu", `no such file`},
	} {
		code, out, errs := try("", strings.Fields(c.args)...)
		if code != cli.ExitUsage || !regexp.MustCompile(c.want).MatchString(errs) || out != "" {
			t.Errorf("swtee %s: code %d, %q, %q, want %d, %s", c.args, code, out, errs, cli.ExitUsage, c.want)
		}
	}
}

// TestHelp names the ways in which QEMU runs, and that nothing is protected.
func TestHelp(t *testing.T) {
	_, out, _ := try("", "--help")
	for _, want := range []string{
		"protects nothing", "[OPTIONS] -- QEMU", "under ", "tcg ", "--fault", "swtee -- qemu-system-x86_64",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("the help lacks %q", want)
		}
	}
}

// TestFailuresOfARun: if QEMU does not exist or the platform is damaged, the report is
// written anyway.
func TestFailuresOfARun(t *testing.T) {
	const notFound = 127 // a shell's exit code for a missing program
	dir := t.TempDir()
	report := filepath.Join(dir, "report.json")
	code, _, errs := try(dir, "--accel", "tcg", "--quiet", "--report", report, "--", filepath.Join(dir, "no-qemu"))
	if code != notFound || !strings.Contains(errs, "no such file") {
		t.Errorf("a missing QEMU: code %d, %q, want %d", code, errs, notFound)
	}
	if b, err := os.ReadFile(report); err != nil || !strings.Contains(string(b), swtee.ReportSchema) {
		t.Errorf("report %q, %v, want one of schema %s", b, err, swtee.ReportSchema)
	}
	if err := os.WriteFile(filepath.Join(dir, "platform.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs = try(dir, "--accel", "tcg", "--quiet", "--", "/bin/true")
	if code != cli.ExitFailure || !strings.Contains(errs, "to have a new platform made") {
		t.Errorf("a damaged platform: code %d, %q, want %d and a hint", code, errs, cli.ExitFailure)
	}
}

func TestReportFile(t *testing.T) {
	dir := t.TempDir()
	if r, err := openReport(""); r != nil || err != nil {
		t.Errorf("no name: %v, %v, want nothing", r, err)
	}
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openReport(pipe); err == nil || !strings.Contains(err.Error(), "no process reads this pipe") {
		t.Errorf("a pipe without a reader: %v", err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	r, err := openReport(pipe)
	if err != nil {
		t.Fatal(err)
	}
	defer r.close()
	rep := &swtee.Report{Schema: swtee.ReportSchema, Emulated: true}
	if err := r.step(rep); err != nil { // a stream gets the report once, at the end
		t.Fatal(err)
	}
	if err := r.last(rep); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, err := reader.Read(b)
	if err != nil || strings.Count(string(b[:n]), swtee.ReportSchema) != 1 {
		t.Errorf("the pipe got %q, %v, want one report", b[:n], err)
	}
	// A link's target is replaced, not the link.
	target, link := filepath.Join(dir, "target"), filepath.Join(dir, "link")
	if err := os.WriteFile(target, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, link); err != nil {
		t.Fatal(err)
	}
	f, err := openReport(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.step(rep); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v, %v, want a link still", info.Mode(), err)
	}
	if b, err := os.ReadFile(target); err != nil || !strings.Contains(string(b), swtee.ReportSchema) {
		t.Errorf("the target has %q, %v, want a report", b, err)
	}
}
