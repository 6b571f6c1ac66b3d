//go:build !quick

package under

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/cpuid"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
	"github.com/vmlatch/vmlatch/firmware/sev/table"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/integration/qemus"
	"github.com/vmlatch/vmlatch/qmp"
)

// newSession makes an owner's session and the files that QEMU reads.
func newSession(t testing.TB, policy sev.Policy) (s *session.Session, props []string) {
	t.Helper()
	s, err := session.New(rand.Reader, platform(t).Chain().PDH, policy)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, b := range map[string][]byte{"godh": s.OwnerCert.Bytes(), "session": s.Blob[:]} {
		text := base64.StdEncoding.EncodeToString(b)
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s, []string{"dh-cert-file=" + filepath.Join(dir, "godh"), "session-file=" + filepath.Join(dir, "session")}
}

// TestStory is the main job through QEMU's own SEV code: paused, verified, secret
// injected and read back from guest memory, released.
func TestStory(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	kernel, initrd := guestFile(t, "vmlinuz"), guestFile(t, "initrd.img")
	const policy = sev.PolicyNoDebug | sev.PolicyNoKeySharing
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		s, props := newSession(t, policy)
		args := sevArgs(firmware, append(props, "policy=3", "kernel-hashes=on")...)
		args = append(args, "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0")
		r := startFake(t, qemu, args).up()

		var status struct{ Status string }
		r.execute("query-status", nil, &status)
		if status.Status != "prelaunch" {
			t.Errorf("status %s, want prelaunch", status.Status)
		}
		info, err := qmp.QuerySEV{}.Execute(r.ctx(), r.conn)
		if err != nil || !info.Enabled || info.State != "launch-secret" || sev.Policy(info.Policy) != policy {
			t.Errorf("query-sev: %+v, %v", info, err)
		}
		raw, err := qmp.QuerySEVLaunchMeasure{}.Execute(r.ctx(), r.conn)
		if err != nil {
			t.Fatal(err)
		}
		m, err := sev.ParseMeasurement(raw)
		if err != nil {
			t.Fatal(err)
		}
		digest := predict(t, firmware, kernel, initrd, "console=ttyS0")
		if mac := s.Keys.LaunchMAC(swtee.FirmwareBuild(), policy, digest, m.Nonce); mac != m.MAC {
			t.Fatalf("the measurement does not match the predicted digest %x; QEMU submitted %s", digest, r.digest())
		}

		secret, err := table.Pack([]table.Entry{{
			GUID: table.GUIDDiskPassphrase,
			Data: []byte("correct horse battery"),
		}})
		if err != nil {
			t.Fatal(err)
		}
		packet, err := s.Keys.Seal(secret, [16]byte{1, 2, 3}, m)
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(packet.Header[:])
		flipped[30] ^= 1
		err = qmp.SEVInjectLaunchSecret{PacketHeader: flipped, Secret: packet.Data}.Execute(r.ctx(), r.conn)
		if err == nil || !strings.Contains(err.Error(), "fw_error=11 'Bad measurement'") {
			t.Errorf("a flipped header: %v, want fw_error 11", err)
		}
		inject := qmp.SEVInjectLaunchSecret{PacketHeader: packet.Header[:], Secret: packet.Data}
		if err := inject.Execute(r.ctx(), r.conn); err != nil {
			t.Fatal(err)
		}
		area := secretArea(t, firmware)
		if got := r.memory(uint64(area.Base), len(secret)); !bytes.Equal(got, secret) {
			t.Errorf("guest memory at %#x holds %x, want %x", area.Base, got, secret)
		}
		checkAttestation(t, r, digest, policy)
		r.execute("cont", nil, nil)
		if info, err = (qmp.QuerySEV{}).Execute(r.ctx(), r.conn); err != nil || info.State != "running" {
			t.Errorf("after cont: %+v, %v", info, err)
		}
		r.quit()
	})
}

func predict(t testing.TB, firmware, kernel, initrd, cmdline string) [32]byte {
	t.Helper()
	img := parseFirmware(t, firmware)
	layout, err := launch.LayoutOf(img)
	if err != nil {
		t.Fatal(err)
	}
	in := launch.Inputs{Technology: launch.SEV, Firmware: layout}
	if kernel != "" {
		h, err := sev.HashKernelFiles(kernel, firstboot.Initrd{File: initrd}, cmdline)
		if err != nil {
			t.Fatal(err)
		}
		in.Kernel = &h
	}
	d, err := launch.Digest(in)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(d)
}

func parseFirmware(t testing.TB, file string) *ovmf.Image {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func secretArea(t testing.TB, firmware string) ovmf.Area {
	t.Helper()
	img := parseFirmware(t, firmware)
	area, ok, err := img.SecretArea()
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	return area
}

// shownCBit is the position of the C-bit that QEMU shows. QEMU asks CPUID, and not every
// processor can trap that.
func shownCBit() int {
	if newSupervisor(Options{}).trapsCPUID {
		return swtee.CBitPos
	}
	_, b, _, _ := cpuid.Ask(leafMemoryEncryption, 0)
	return int(b & 0x3f)
}

// checkAttestation checks query-sev-attestation-report and its signature by the
// PEK of query-sev-capabilities, whose chain must verify.
func checkAttestation(t testing.TB, r *run, digest [32]byte, policy sev.Policy) {
	t.Helper()
	caps, err := qmp.QuerySEVCapabilities{}.Execute(r.ctx(), r.conn)
	if err != nil {
		t.Fatal(err)
	}
	if caps.CBitPos != shownCBit() || caps.ReducedPhysBits != 1 || !bytes.Equal(caps.CPU0ID, r.fw.ID()) {
		t.Errorf("capabilities: bit %d, %d reduced bits, id %x", caps.CBitPos, caps.ReducedPhysBits, caps.CPU0ID)
	}
	chain, err := sev.ParseChain(caps.PDH, caps.CertChain)
	if err != nil {
		t.Fatal(err)
	}
	if chain.CEK.Signed() {
		t.Error("the exported CEK is signed, and that of real platforms is not")
	}
	signed, err := chain.WithCEK(r.fw.SignedCEK())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := signed.Verify([]sev.Root{r.fw.Root()}); err != nil {
		t.Error(err)
	}
	mnonce := bytes.Repeat([]byte{7}, 16)
	var answer struct {
		Data []byte `json:"data"`
	}
	r.execute("query-sev-attestation-report", map[string][]byte{"mnonce": mnonce}, &answer)
	report := answer.Data
	if len(report) != swtee.AttestationReportSize {
		t.Fatalf("report of %d bytes, want %d", len(report), swtee.AttestationReportSize)
	}
	want := le.AppendUint32(slices.Concat(mnonce, digest[:]), uint32(policy))
	if !bytes.Equal(report[:52], want) {
		t.Errorf("report %x, want %x", report[:52], want)
	}
	number := func(off int) *big.Int {
		b := bytes.Clone(report[off : off+72])
		slices.Reverse(b)
		return new(big.Int).SetBytes(b)
	}
	sum := sha256.Sum256(report[:52])
	if !ecdsa.Verify(chain.PEK.Key, sum[:], number(64), number(136)) {
		t.Error("the PEK did not sign the report")
	}
}

// TestESDigests compares what QEMU submits for SEV-ES guests with the digests of
// other implementations (vectors legacy-es-0285, seves-0017 of sev-snp-measure).
func TestESDigests(t *testing.T) {
	firmware := vectorFirmware(t, "sid/OVMF.amdsev.fd")
	for _, c := range []struct{ name, from, prop, want string }{
		{"legacy", "7.2", "", "bc165a2b0b48c9fd13e7b61fbcd3ed9cee31ac4b197b5b4205abd36b390118b1"},
		{"init2", "10.0", "legacy-vm-type=off", "3f7b1dce8aaf2cf6704d89f726f95784dc9f47469269cfcfb6bda4043f03849a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			qemus.Each(t, c.from, func(t *testing.T, qemu string) {
				props := []string{"policy=5"}
				if c.prop != "" {
					props = append(props, c.prop)
				} else if !strings.Contains(qemu, "7.2") {
					props = append(props, "legacy-vm-type=on")
				}
				args := append(sevArgs(firmware, props...), "-smp", "2", "-cpu", "EPYC-Milan-v1")
				r := startFake(t, qemu, args).up()
				if got := r.digest(); got != c.want {
					t.Errorf("digest %s, want %s", got, c.want)
				}
				rep := r.report()
				if rep.Technology != "sev-es" || len(rep.Pages) != 3 {
					t.Fatalf("report: %s, %d pages, want sev-es, 3", rep.Technology, len(rep.Pages))
				}
				if p := rep.Pages[2]; p.Type != "vmsa" || *p.VCPU != 1 {
					t.Errorf("last page %+v, want the VMSA of vCPU 1", p)
				}
				r.quit()
			})
		})
	}
}

// TestSessionRefused: the platform checks the owner's session, and QEMU reports why it
// is refused.
func TestSessionRefused(t *testing.T) {
	firmware := guestFile(t, "OVMF.amdsev.fd")
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		_, props := newSession(t, sev.PolicyNoDebug)
		for prop, want := range map[string]string{
			"policy=3":          "fw_error=11 'Bad measurement'",
			"policy=0xff010001": "fw_error=7 'Policy is not allowed'",
		} {
			r := startFake(t, qemu, sevArgs(firmware, append(props, prop)...))
			if r.conn != nil || r.code != 1 || !strings.Contains(r.said(), want) {
				t.Errorf("%s: code %d, said %q, want %q", prop, r.code, r.said(), want)
			}
		}
	})
}

// TestOnRealKVM launches on this host's KVM, even if that cannot execute the guest.
func TestOnRealKVM(t *testing.T) {
	if err := unix.Access("/dev/kvm", unix.R_OK|unix.W_OK); err != nil {
		t.Skipf("/dev/kvm: %v", err)
	}
	firmware := guestFile(t, "OVMF.amdsev.fd")
	qemus.Each(t, "7.2", func(t *testing.T, qemu string) {
		r := start(t, qemu, options{args: sevArgs(firmware, "policy=1")}).up()
		want := predict(t, firmware, "", "", "")
		checkAttestation(t, r, want, sev.PolicyNoDebug)
		r.quit()
	})
}

func TestDaemonizeIsRefused(t *testing.T) {
	code, err := Run(t.Context(), Options{Argv: []string{"qemu", "-daemonize"}})
	if code != 2 || !errors.Is(err, ErrDaemonize) {
		t.Errorf("code %d, %v; want 2, %v", code, err, ErrDaemonize)
	}
}
