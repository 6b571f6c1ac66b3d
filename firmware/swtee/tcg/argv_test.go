package tcg

import (
	"strings"
	"testing"
)

func TestCommandLine(t *testing.T) {
	c, err := parseCommandLine([]string{
		"qemu", "-machine", "q35,accel=kvm,confidential-guest-support=sev0,vmport=off",
		"-enable-kvm", "-accel", "kvm", "-cpu", "host,+x",
		"-object", `{"qom-type":"sev-guest","id":"sev0","policy":3,"kernel-hashes":true,` +
			`"dh-cert-file":"a,b","session-file":"s"}`,
		"-object", "rng-random,id=r", "-S", "-append", "-S -daemonize", "-kernel", "k", "-initrd", "i", "-bios", "fw",
		"-chardev", "socket,id=m,fd=5,server=on,wait=off,logfile=x,,y", "-mon", "chardev=m,mode=control",
		"-chardev", "socket,id=con,fd=6,server=on,wait=off", "-qmp", "unix:/tmp/a,,b.sock,server=on,wait=off",
	})
	if err != nil {
		t.Fatal(err)
	}
	g := *c.guest
	if g != (sevObject{policy: 3, ownerFile: "a,b", sessionFile: "s", kernelHashes: true}) {
		t.Errorf("object %+v", g)
	}
	if !c.paused || c.cmdline != "-S -daemonize" || c.kernel != "k" || c.initrd != "i" || c.firmware != "fw" {
		t.Errorf("%+v", c)
	}
	got := strings.Join(c.List(), " ")
	want := "-accel tcg -machine q35,vmport=off -cpu max,+x -object rng-random,id=r " +
		"-append -S -daemonize -kernel k -initrd i -bios fw " +
		"-chardev  -mon chardev=m,mode=control " + // filled in when QEMU starts
		"-chardev socket,id=con,fd=6,server=on,wait=off " +
		"-chardev  -qmp chardev:swtee-qmp1 -S"
	if got != want {
		t.Errorf("command line\n%s\nwant\n%s", got, want)
	}
}

func TestCommandLineRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"":                                     "no QEMU",
		"qemu disk.img":                        "options only",
		"qemu -bios":                           "value is missing",
		"qemu -daemonize":                      "outlive",
		"qemu -object tdx-guest,id=x":          "only sev-guest",
		"qemu -object sev-snp-guest,id=x":      "only sev-guest",
		"qemu -object sev-guest,id=x,policy=5": "SEV-ES",
		"qemu -object sev-guest,id=x,policy=many":    "32-bit",
		"qemu -object sev-guest,id=x,session-file=s": "go together",
		"qemu -object {bad":                          "-object",
	} {
		if _, err := parseCommandLine(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}

func FuzzCommandLine(f *testing.F) {
	f.Add("-object\nsev-guest,id=a\n-qmp\nunix:x,server=on")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := parseCommandLine(append([]string{"qemu"}, strings.Split(s, "\n")...))
		if err == nil && len(c.List()) < 3 {
			t.Errorf("%q: QEMU gets %q", s, c.List())
		}
	})
}
