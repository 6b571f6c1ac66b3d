package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

const pageInPlace = "a page of the launch is in place"

// TestTwinOfAHostThatLies: what is swapped between launch and boot keeps a guest of SEV-SNP from
// booting, firmware is found out before it runs, and what the launch is told changes its digest.
func TestTwinOfAHostThatLies(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	h := newHost(t)
	g := h.snpLine(c, qemus.Version(t, "11.1"))
	kernel, err := os.ReadFile(c.kernel)
	if err != nil {
		t.Fatal(err)
	}
	kernel[len(kernel)-100] ^= 1 // in its signature, which nothing else checks
	h.write("kernel", string(kernel))
	h.write("initrd", "another initrd")

	start := func(args ...string) (out *watched, ended <-chan error, kill func()) {
		cmd := h.command("swtee", append(append([]string{"--accel", "twin", "-v"}, args...), g.args()...)...)
		out = &watched{re: regexp.MustCompile(`vmlatch-guest|Linux`), seen: make(chan struct{})}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		end := make(chan error, 1)
		go func() { end <- cmd.Wait() }()
		return out, end, func() { _ = cmd.Process.Kill() }
	}
	// The honest guest, next to which the others do not boot. It takes no place among the tests
	// that run at once, for which it could wait longer than they wait for it.
	honest, end, kill := start("--")
	defer kill()
	t.Run("swapped", func(t *testing.T) {
		for _, lie := range []string{
			"kernel=" + h.work + "/kernel", "initrd=" + h.work + "/initrd", "append=" + cocoLine + " x",
		} {
			t.Run(strings.Split(lie, "=")[0], func(t *testing.T) {
				t.Parallel()
				out, ended, kill := start("--measure", lie, "--")
				defer kill()
				select {
				case <-honest.seen:
					time.Sleep(5 * time.Second) // as long again as it takes from the firmware to the kernel
				case <-time.After(3 * time.Minute):
					t.Fatalf("the honest guest does not boot: %s", honest.String())
				case err := <-ended:
					t.Fatalf("%v: %s", err, out.String())
				}
				select {
				case <-out.seen:
					t.Errorf("the guest boots: %s", out.String())
				default:
				}
				if !strings.Contains(out.String(), pageInPlace) {
					t.Errorf("it was not launched: %s", out.String())
				}
			})
		}
	})

	kill()
	<-end
	h.write("OVMF.other.fd", "")
	firmware, err := os.ReadFile(g.bios)
	if err != nil {
		t.Fatal(err)
	}
	firmware[0x1000] ^= 1
	h.write("OVMF.other.fd", string(firmware))
	out, code := h.twin(g, "", "--measure", "bios="+h.work+"/OVMF.other.fd")
	if code != 1 || !strings.Contains(out, "is not the one that was measured") ||
		strings.Contains(out, "vmlatch-guest") {
		t.Errorf("other firmware: code %d: %s", code, out)
	}
	digest := regexp.MustCompile(`digest=([0-9a-f]{96})`)
	predicted := func(cpus, cpu string) string {
		return strings.TrimSpace(
			h.run("latchkey", "measure", "--technology", "sev-snp", "--cpu", cpu, "--vcpus", cpus,
				"--firmware", g.bios, "--kernel", g.kernel, "--initrd", g.initrd, "--cmdline", g.append),
		)
	}
	for _, c := range []struct{ lie, cpus, cpu string }{
		{"m=384", "1", "EPYC-Milan"}, {"smp=2", "2", "EPYC-Milan"}, {"cpu=EPYC-v4", "1", "EPYC-v4"},
	} {
		out, _ := h.twin(g, pageInPlace, "-v", "--measure", c.lie)
		m := digest.FindStringSubmatch(out)
		if m == nil || m[1] != predicted(c.cpus, c.cpu) {
			t.Errorf("%s: digest %v, want that of %s CPUs %s", c.lie, m, c.cpus, c.cpu)
		}
	}
	waitNothing(t, h.work)
}

// TestTwinSecrets: guests of SEV and SEV-ES find the secret that QEMU's own code was given.
func TestTwinSecrets(t *testing.T) {
	t.Parallel()
	for _, policy := range []string{"no-debug", "es"} {
		qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
			h := newHost(t)
			spec := strings.NewReplacer(
				`policy        = ["no-debug", "no-key-sharing", "no-send"]`,
				`policy = ["no-debug", "no-key-sharing", "no-send", "`+policy+`"]`,
				`name   = "guest"`, `name = "guest"`+"\n"+`cpu = "EPYC-Milan"`,
			)
			text, err := os.ReadFile(filepath.Join(top(), "examples/sev/guest.toml"))
			if err != nil {
				t.Fatal(err)
			}
			body := spec.Replace(string(text))
			measure := []string{}
			if policy == "es" {
				body = strings.Replace(body, `technology    = "sev"`, `technology = "sev-es"`, 1)
				h.session("es")
				measure = []string{"--cpu", "EPYC-Milan", "--vcpus", "1"}
				if strings.Contains(qemu, "/7.2/") { // before KVM_SEV_INIT2
					measure = append(measure, "--vmsa", "legacy")
				}
			} else {
				body = strings.Replace(body, `"no-send", "no-debug"]`, `"no-send"]`, 1)
				h.session()
			}
			h.write("guest.toml", fmt.Sprintf("qemu = %q\n%s", qemu, body))
			h.run("vmlatch", "start", "guest.toml", "--emulate", "--hold")
			h.write("m.json", h.run("vmlatch", "measure", "guest"))
			h.write("phrase", "correct horse battery staple")
			h.latchkey("verify", measure...)
			h.latchkey("secret", append(measure, "--entry", "disk=phrase", "--out", "packet.json")...)
			h.run("vmlatch", "inject", "guest", "packet.json")
			h.run("vmlatch", "release", "guest")
			log := h.run("vmlatch", "logs", "--follow", "guest")
			h.shows("the guest's console", log, "secret 736869e5-84f0-4973-92ec-06879ce3da0b: 28 bytes, sha256 ")
			if strings.Contains(log, "correct horse") {
				t.Error("the secret is in the log")
			}
			h.run("vmlatch", "ps") // clears what the guest left by its power-off
			h.clearEnded()
			waitNothing(t, h.work)
		})
	}
}

// TestTwinIDBlock: a launch that the platform refuses ends with QEMU's own words and code, before
// the guest runs.
func TestTwinIDBlock(t *testing.T) {
	t.Parallel()
	c := needCoco(t)
	h := newHost(t)
	g := h.snpLine(c, qemus.Version(t, "11.1"))
	h.write("id.pem", newIDKey(t))
	h.run("latchkey", "idblock", "make", "guest", "--id-key", "id.pem", "--digest", strings.Repeat("11", 48))
	block, err := os.ReadFile(filepath.Join(h.work, "guest.id-block"))
	if err != nil {
		t.Fatal(err)
	}
	auth, err := os.ReadFile(filepath.Join(h.work, "guest.id-auth"))
	if err != nil {
		t.Fatal(err)
	}
	g.object += ",id-block=" + strings.TrimSpace(string(block)) + ",id-auth=" + strings.TrimSpace(string(auth))
	out, code := h.twin(g, "")
	if code != 1 || !strings.Contains(out, "SNP_LAUNCH_FINISH") || !strings.Contains(out, "fw_error=11") ||
		strings.Contains(out, "vmlatch-guest") {
		t.Errorf("code %d: %s", code, out)
	}
	waitNothing(t, h.work)
}

// TestTwinOfTwoVersions: QEMU 10.0 launches a guest of SEV-SNP, and 7.2 runs it, which serves the
// kernel with its header filled in. Newer kernels fail under TCG of 7.2.
func TestTwinOfTwoVersions(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	g := h.snpLine(coco{filepath.Join(h.work, "vmlinuz"), filepath.Join(h.work, "initrd.img"), ""},
		qemus.Version(t, "10.0"))
	old := qemus.Version(t, "7.2")
	out, code := h.twin(g, "", "-v", "--twin-qemu", old)
	if code != 2 || !strings.Contains(out, "has no configfs-tsm, by which a guest of SEV-SNP proves itself") {
		t.Errorf("an old kernel: code %d: %s", code, out)
	}
	out, code = h.twin(g, "", "-v", "--any-kernel", "--twin-qemu", old)
	if code != 0 {
		t.Errorf("code %d", code)
	}
	h.shows("swtee", out, "and runs in "+old, "its header filled in", pageInPlace, "vmlatch-guest: up")
	waitNothing(t, h.work)
}
