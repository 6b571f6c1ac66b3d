package tee_test

import (
	"net"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// subject is what checks look at of a spec on a good host.
func subject(t *testing.T, text string) *tee.Subject {
	t.Helper()
	g := mustGuest(t, text)
	f := testhost.Facts(withMKTME)
	p, err := planOf(g, f)
	if err != nil {
		t.Fatal(err)
	}
	return &tee.Subject{
		Guest: g, Facts: f, Plan: p, Options: plan.ParseOptions(p.QEMUArgv()), Image: &plan.Image{SecretArea: true},
	}
}

// verdict makes a check by its id.
func verdict(t *testing.T, id string, s *tee.Subject) (tee.Verdict, string) {
	t.Helper()
	for _, c := range tee.Checks() {
		if c.ID != id {
			continue
		}
		if c.When != nil && !c.When(s) {
			return tee.NotApplicable, ""
		}
		return c.Look(s)
	}
	t.Fatalf("no check %s", id)
	return "", ""
}

// TestChecksOfTechnologies: each of their checks, where it fails, where it just does
// not, and where it is about another technology.
func TestChecksOfTechnologies(t *testing.T) {
	const ok, failed, unknown, not = tee.OK, tee.Failed, tee.Unknown, tee.NotApplicable
	onHost := func(change func(*host.Report)) func(*tee.Subject) {
		return func(s *tee.Subject) { change(s.Facts.Host) }
	}
	sev, es, snp, tdx := specOf("sev"), specOf("sev-es"), specOf("sev-snp"), specOf("tdx")
	object := func(old, with string) func(*tee.Subject) {
		return func(s *tee.Subject) {
			argv := strings.Split(strings.Replace(strings.Join(s.Plan.QEMUArgv(), "\n"), old, with, 1), "\n")
			s.Options = plan.ParseOptions(argv)
		}
	}
	emulated := func(s *tee.Subject) { s.Facts.Emulator = []string{"swtee"} }
	noQuote := strings.Replace(tdx, `quote-socket = "qgs"`, "", 1)
	quoteAt := func(path string) string { return strings.Replace(tdx, `"qgs"`, "'"+path+"'", 1) }
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	scsi := func(driver string) string { return tdx + "[[device]]\ndriver = '" + driver + "'\n" }
	idFiles := func(block, auth int) func(*tee.Subject) {
		return func(s *tee.Subject) {
			s.Confidential.IDBlock = "b"
			s.Facts.OwnerFiles = map[string][]byte{"id-block": make([]byte, block), "id-auth": make([]byte, auth)}
		}
	}
	session := func(cert, session string) string {
		return strings.NewReplacer(`"cert"`, "'"+cert+"'", `"session"`, "'"+session+"'").Replace(sev)
	}
	cert, packed := file(t, base64Of(2084)), file(t, base64Of(128))

	for _, c := range []struct {
		id, text string
		change   func(*tee.Subject)
		want     tee.Verdict
		detail   string
	}{
		{"sev-policy-debug", sev, nil, ok, ""},
		{"sev-policy-debug", with("sev-es", "policy = ['no-key-sharing']"), nil, failed, "lacks no-debug"},
		{"sev-policy-debug", snp, nil, not, ""},
		{"sev-policy-key-sharing", with("sev", "policy = ['no-debug']"), nil, failed, ""},
		{"sev-policy-key-sharing", es, nil, ok, ""},
		{"sev-policy-send", with("sev", "policy = ['no-debug', 'no-key-sharing']"), nil, failed, ""},
		{"sev-policy-send", es, nil, ok, ""},
		{"session-pair", sev, nil, ok, ""},
		{"session-pair", es, nil, ok, ""},
		{"session-pair", strings.Replace(sev, `owner-cert = "cert"`, "", 1), nil, failed, "go together"},
		{"session-pair", tdx, nil, not, ""},
		{"es-on-snp-host", es, nil, ok, ""},
		{"es-on-snp-host", es, onHost(func(h *host.Report) { h.SEV.SNPEnabled = host.Yes }), failed, ""},
		{
			"es-on-snp-host", es, onHost(func(h *host.Report) { h.SEV.SNPEnabled = host.Unknown }), unknown,
			"cannot be read",
		},
		{"es-on-snp-host", es, onHost(func(h *host.Report) { h.SEV = nil }), not, ""},
		{"es-on-snp-host", es, emulated, not, ""},
		{"es-on-snp-host", sev, nil, not, ""},
		{"vmsa-features", es, nil, ok, ""},
		{"vmsa-features", es, onHost(func(h *host.Report) { h.SEV.DebugSwap = host.Yes }), failed, ""},
		{"secret-area", sev, nil, ok, ""},
		{"secret-area", sev, func(s *tee.Subject) { s.Image.SecretArea = false }, failed, ""},
		{"secret-area", sev, func(s *tee.Subject) { s.Image = nil }, unknown, "the image cannot be read"},
		{"secret-area", es, nil, not, ""}, // its latch waits for nothing
		{"session-files", session(cert, packed), nil, ok, ""},
		{"session-files", sev, nil, failed, "/specs/cert"},
		{"session-files", session(packed, packed), nil, failed, "has 128 bytes, must have 2084"},
		{"session-files", session(cert, cert), nil, failed, "has 2084 bytes, must have 128"},
		{"session-files", session(cert, file(t, "%")), nil, failed, "illegal base64"},
		{"session-files", session(file(t, strings.Repeat("A", 16<<10+1)), packed), nil, failed, "too large"},
		{"session-files", es, nil, not, ""},
		{"sev-policy-es", sev, nil, ok, ""},
		{"sev-policy-es", es, nil, ok, ""},
		{"sev-policy-es", sev, object(`"policy":11`, `"policy":15`), failed, "0xf"},
		{"sev-policy-es", es, object(`"policy":15`, `"policy":11`), failed, "0xb"},
		{"vm-type-explicit", sev, nil, ok, ""},
		{"vm-type-explicit", sev, object(`"legacy-vm-type":"off"`, `"legacy-vm-type":"on"`), ok, ""},
		{"vm-type-explicit", sev, object(`"legacy-vm-type":"off"`, `"legacy-vm-type":"auto"`), failed, `"auto"`},
		{"vm-type-explicit", sev, func(s *tee.Subject) { s.Facts.Info = testhost.QEMU("7.2") }, not, ""},
		{"vm-type-explicit", snp, nil, not, ""},
		{"cbitpos", snp, nil, ok, ""},
		{"cbitpos", sev, object(`"cbitpos":51`, `"cbitpos":47`), failed, "47 instead of 51"},
		{"cbitpos", sev, onHost(func(h *host.Report) { h.SEV.CBitPos = 0 }), failed, "51 instead of 0"},
		{"cbitpos", tdx, nil, not, ""},
		{"reduced-phys-bits", es, nil, ok, ""},
		{"reduced-phys-bits", es, object(`"reduced-phys-bits":1`, `"reduced-phys-bits":5`), failed, "5"},

		{"id-block-pair", snp, nil, ok, ""},
		{"id-block-pair", with("sev-snp", "id-auth = 'a'"), nil, failed, "go together"},
		{
			"id-block-pair", snp,
			func(s *tee.Subject) { s.Confidential.IDBlock, s.Confidential.IDAuth = "b", "a" }, ok, "",
		},
		{"snp-policy-debug", snp, nil, ok, ""},
		{"snp-policy-debug", with("sev-snp", "policy = ['smt', 'debug']"), nil, failed, "debug: "},
		{"snp-policy-migration", with("sev-snp", "policy = ['smt', 'migrate']"), nil, failed, "migrate: "},
		{"snp-policy-migration", with("sev-snp", "policy = ['smt', 'debug']"), nil, ok, ""},
		{"id-block-size", snp, idFiles(96, 4096), ok, ""},
		{"id-block-size", snp, idFiles(95, 4096), failed, "95 and 4096 bytes"},
		{"id-block-size", snp, idFiles(96, 4097), failed, "96 and 4097 bytes"},
		{"id-block-size", snp, nil, not, ""},
		{"snp-policy-smt", snp, nil, ok, ""}, // its policy allows SMT
		{"snp-policy-smt", with("sev-snp", "policy = ['single-socket']"), nil, failed, ""},
		{
			"snp-policy-smt", with("sev-snp", "policy = ['single-socket']"),
			onHost(func(h *host.Report) { h.SMT = host.No }), ok, "",
		},
		{"snp-policy-support", snp, nil, ok, ""},
		{"snp-policy-support", with("sev-snp", "policy = ['ciphertext-hiding']"), nil, ok, ""},
		{
			"snp-policy-support", with("sev-snp", "policy = ['ciphertext-hiding']"),
			onHost(func(h *host.Report) { h.SEV.CiphertextHiding = 0 }), failed, "",
		},
		{"snp-iommu", snp, nil, ok, ""},
		{"snp-iommu", snp, onHost(func(h *host.Report) { h.IOMMU.Present = host.No }), failed, "present: no"},
		{
			"snp-iommu", snp, onHost(func(h *host.Report) { h.IOMMU.Passthrough = host.Yes }), failed,
			"pass-through: yes",
		},
		{"snp-iommu", snp, onHost(func(h *host.Report) { h.IOMMU.Passthrough = host.Unknown }), unknown, ""},
		{"snp-firmware", snp, onHost(func(h *host.Report) { h.SEV.SNPAPI = "1.51" }), ok, ""},
		{"snp-firmware", snp, onHost(func(h *host.Report) { h.SEV.SNPAPI = "2.0" }), ok, ""},
		{"snp-firmware", snp, onHost(func(h *host.Report) { h.SEV.SNPAPI = "1.50" }), failed, "1.50"},
		{"snp-firmware", snp, onHost(func(h *host.Report) { h.SEV.SNPAPI = "0.99" }), failed, "0.99"},
		{"snp-firmware", snp, onHost(func(h *host.Report) { h.SEV.SNPAPI = "" }), unknown, "log"},
		{"snp-kernel", snp, onHost(func(h *host.Report) { h.Kernel = "6.11.0" }), ok, ""},
		{"snp-kernel", snp, onHost(func(h *host.Report) { h.Kernel = "6.10.9" }), failed, "6.10.9"},
		{"snp-kernel", snp, emulated, not, ""},
		{"ciphertext-hiding", snp, onHost(func(h *host.Report) { h.SEV.CiphertextHiding = 1 }), ok, ""},
		{"ciphertext-hiding", snp, onHost(func(h *host.Report) { h.SEV.CiphertextHiding = 0 }), failed, ""},

		{"tdx-attributes", tdx, nil, ok, ""},
		{"tdx-attributes", with("tdx", "policy = ['sept-ve-disable', 'pks', 'perfmon']"), nil, ok, ""},
		{"tdx-attributes", with("tdx", "policy = ['sept-ve-disable', 'debug']"), nil, failed, "debug: "},
		{"tdx-attributes", with("tdx", "policy = ['pks']"), nil, failed, "lacks sept-ve-disable"},
		{"tdx-attributes", with("tdx", "policy = ['0x10000002']"), nil, failed, "0x2: these bits"},
		{"tdx-attributes", snp, nil, not, ""},
		{"tdx-cpu-host", tdx, nil, ok, ""},
		{"tdx-cpu-host", "cpu = 'host,-avx'" + tdx, nil, ok, ""},
		{"tdx-cpu-host", "cpu = 'EPYC'" + tdx, nil, failed, `"EPYC": must be host`},
		{"tdx-hugepages", tdx, nil, ok, ""},
		{"tdx-hugepages", tdx + "[memory-backend]\nhugepages = '2MiB'", nil, failed, ""},
		{"tdx-boot-disk", scsi("virtio-blk-pci"), nil, ok, ""},
		{"tdx-boot-disk", scsi("virtio-scsi-pci"), nil, failed, "virtio-scsi-pci"},
		{"tdx-boot-disk", scsi("scsi-hd"), nil, failed, "scsi-hd"},
		{"tdx-boot-disk", scsi("lsi53c895a"), nil, failed, "lsi53c895a"},
		{"tdx-boot-disk", scsi("not-a-scsi-hd"), nil, ok, ""}, // a name is matched as a whole
		{"tdx-boot-disk", tdx, nil, ok, ""},
		{"tdx-kernel", tdx, onHost(func(h *host.Report) { h.Kernel = "6.16.0" }), ok, ""},
		{"tdx-kernel", tdx, onHost(func(h *host.Report) { h.Kernel = "6.15.9" }), failed, "6.15.9"},
		{"tdx-kernel", tdx, onHost(func(h *host.Report) { h.TDX = nil }), not, ""},
		{"tdx-kernel", tdx, emulated, not, ""},
		{"tdx-module", tdx, nil, ok, ""},
		{"tdx-module", tdx, onHost(func(h *host.Report) { h.TDX.Initialized = host.No }), failed, ""},
		{"tdx-module", tdx, onHost(func(h *host.Report) { h.TDX.Initialized = host.Unknown }), unknown, ""},
		{"tdx-quote-service", noQuote, nil, failed, "no quote-socket is named"},
		{"tdx-quote-service", quoteAt("/nonexistent"), nil, failed, "no such socket"},
		{"tdx-quote-service", quoteAt(cert), nil, failed, "not a socket"},
		{"tdx-quote-service", quoteAt(socket), nil, ok, ""},
		{"machine-pinned", tdx, nil, ok, ""},
		{"machine-pinned", strings.Replace(tdx, "pc-q35-11.1", "q35", 1), nil, failed, "q35 is pc-q35-11.1 here"},
		{"machine-pinned", tdx, func(s *tee.Subject) { s.Facts.Info = nil }, not, ""},
		{"tdx-machine", tdx, nil, ok, ""},
		{"tdx-machine", tdx, object("hpet=off", "hpet=on"), failed, "hpet=on"},
		{"tdx-machine", tdx, object("hpet=off", "hpet=off,pic=on"), failed, "pic=on"},
		{"tdx-machine", tdx, object("hpet=off", "pic=off"), failed, "hpet="},
		{
			"tdx-machine", tdx,
			func(s *tee.Subject) { object("hpet=off", "pic=off")(s); s.Facts.Info.Machine = nil }, ok, "",
		},
	} {
		s := subject(t, c.text)
		if c.change != nil {
			c.change(s)
		}
		got, detail := verdict(t, c.id, s)
		if got != c.want || !strings.Contains(detail, c.detail) {
			t.Errorf("%s of\n%s\nis %s (%s), want %s (%s)", c.id, c.text, got, detail, c.want, c.detail)
		}
	}
}

// base64Of is base64 of n zeros.
func base64Of(n int) string {
	text := strings.Repeat("A", (n+2)/3*4)
	return text[:len(text)-(3-n%3)%3] + strings.Repeat("=", (3-n%3)%3)
}

// TestChecksOfTechnologiesAreComplete: plain VMs and MKTME bring none.
func TestChecksOfTechnologiesAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range tee.Checks() {
		if seen[c.ID] {
			t.Errorf("%s stands there twice", c.ID)
		}
		seen[c.ID] = true
		for _, tech := range []string{"none", "mktme"} {
			if got, detail := verdict(t, c.ID, subject(t, specOf(tech))); got != tee.NotApplicable {
				t.Errorf("%s of a guest of %s: %s (%s), want it not to apply", c.ID, tech, got, detail)
			}
		}
	}
	if len(seen) < 25 {
		t.Errorf("%d checks, want at least 25", len(seen))
	}
}

func TestVerdicts(t *testing.T) {
	if v, detail := tee.Verify(true, "%d", 5); v != tee.OK || detail != "" {
		t.Errorf("what is right is %s (%s), want ok without a detail", v, detail)
	}
	if v, detail := tee.Verify(false, "%d", 5); v != tee.Failed || detail != "5" {
		t.Errorf("what is wrong is %s (%s), want failed (5)", v, detail)
	}
	for answer, want := range map[host.Answer]tee.Verdict{
		host.Yes: tee.OK, host.No: tee.Failed, host.Unknown: tee.Unknown,
	} {
		if got, _ := tee.Answered(answer, host.Yes, "no"); got != want {
			t.Errorf("%s, where yes is wanted, is %s, want %s", answer, got, want)
		}
	}
}

func TestDevicesOfASpec(t *testing.T) {
	s := subject(t, "device = [{driver = 'vfio-pci', x = true}, {driver = 'virtio-rng-pci'}]")
	if got := s.Extra(); len(got) != 2 || got[0].Kind != "vfio-pci" || got[0].Props["x"] != "on" {
		t.Errorf("devices %+v, want vfio-pci with x=on and one more", got)
	}
	for pattern, want := range map[string]string{
		"vfio-.*": "vfio-pci", "vfio": "", "rng": "", "a|virtio-rng-pci": "virtio-rng-pci", ".*-pci": "vfio-pci",
		"VFIO-PCI": "",
	} {
		got, found := s.Any(pattern)
		if got.Kind != want || found != (want != "") {
			t.Errorf("%s matches %q, %t, want %q", pattern, got.Kind, found, want)
		}
		v, detail := tee.Without(pattern)(s)
		if (v == tee.Failed) != found || detail != want {
			t.Errorf("without %s: %s (%s), want failed with %q if there is one", pattern, v, detail, want)
		}
	}
}
