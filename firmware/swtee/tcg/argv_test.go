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
	for i, m := range c.monitors {
		c.withMonitor(m, 40+i)
	}
	got := strings.Join(c.args, " ")
	want := "-accel tcg -machine q35,vmport=off -cpu max,+x -object rng-random,id=r " +
		"-append -S -daemonize -kernel k -initrd i -bios fw " +
		"-chardev socket,id=m,logfile=x,,y,fd=40 -mon chardev=m,mode=control " +
		"-chardev socket,id=con,fd=6,server=on,wait=off " +
		"-chardev socket,id=swtee-qmp1,fd=41 -mon chardev=swtee-qmp1,mode=control -S"
	if got != want {
		t.Errorf("command line\n%s\nwant\n%s", got, want)
	}
	if c.monitors[1].path != "/tmp/a,b.sock" || !c.monitors[0].listen || c.monitors[0].fd != 5 {
		t.Errorf("monitors %+v", c.monitors)
	}
}

func TestCommandLineRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"":                                     "no QEMU",
		"qemu disk.img":                        "options only",
		"qemu -bios":                           "value is missing",
		"qemu -daemonize":                      "outlive",
		"qemu -qmp stdio":                      "unix:PATH",
		"qemu -qmp tcp:x:1":                    "unix:PATH",
		"qemu -qmp unix:/x":                    "server=on",
		"qemu -object tdx-guest,id=x":          "only sev-guest",
		"qemu -object sev-snp-guest,id=x":      "only sev-guest",
		"qemu -object sev-guest,id=x,policy=5": "SEV-ES",
		"qemu -object sev-guest,id=x,policy=many":                       "32-bit",
		"qemu -object sev-guest,id=x,session-file=s":                    "go together",
		"qemu -object {bad":                                             "-object",
		"qemu -chardev file,id=m,path=x -mon chardev=m,mode=control":    "unix sockets only",
		"qemu -chardev socket,id=m,fd=one -mon chardev=m,mode=control":  "inherited socket",
		"qemu -chardev socket,id=m,fd=1 -mon chardev=m,mode=control":    "inherited socket",
		"qemu -chardev socket,id=m,path=/x -mon chardev=m,mode=control": "server=on",
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
		if err != nil {
			return
		}
		for _, m := range c.monitors {
			c.withMonitor(m, 9)
		}
	})
}
