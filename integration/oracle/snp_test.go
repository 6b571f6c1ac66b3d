package oracle

import (
	"bytes"
	"encoding/binary"
	"encoding/pem"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-sev-guest/abi"
	pb "github.com/google/go-sev-guest/proto/sevsnp"
	"github.com/google/go-sev-guest/verify"
	"github.com/google/go-sev-guest/verify/trust"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

// genuine is what both are asked: whether a report is genuine, whatever it says.
var genuine = report.Policy{
	AllowDebug: true, AllowSMT: true, AllowMigrationAgent: true, AllowProvisional: true, AllowVLEK: true,
}

// ours judges a report by this project.
func ours(raw, ek []byte, roots *kds.Roots, at time.Time) error {
	r, err := report.Parse(raw)
	if err != nil {
		return err
	}
	e := &report.Evidence{Report: r, Roots: roots}
	if e.EK, err = kds.ParseCertificate(ek); err != nil {
		return err
	}
	return e.Verify(at, &genuine)
}

// theirs judges it by go-sev-guest. A panic is an error.
func theirs(raw, ek, rootPEM []byte, line kds.Line, at time.Time) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	p, err := abi.ReportToProto(raw)
	if err != nil {
		return err
	}
	chain := &pb.CertificateChain{VcekCert: ek}
	if p.SignerInfo>>2&7 == 1 {
		chain = &pb.CertificateChain{VlekCert: ek}
	}
	opts := &verify.Options{DisableCertFetching: true, Now: at}
	if rootPEM != nil {
		root := &trust.AMDRootCerts{ProductLine: string(line), ProductCerts: &trust.ProductCerts{}}
		var certs [][]byte
		for block, rest := pem.Decode(rootPEM); block != nil; block, rest = pem.Decode(rest) {
			certs = append(certs, block.Bytes)
		}
		root.ProductCerts.Ark, root.ProductCerts.Ask, root.ProductCerts.Asvk = parse(certs[0]), parse(certs[1]),
			parse(certs[2])
		opts.TrustedRoots = map[string][]*trust.AMDRootCerts{string(line): {root}}
	}
	name := map[kds.Line]pb.SevProduct_SevProductName{
		kds.Milan: pb.SevProduct_SEV_PRODUCT_MILAN, kds.Genoa: pb.SevProduct_SEV_PRODUCT_GENOA,
		kds.Turin: pb.SevProduct_SEV_PRODUCT_TURIN,
	}[line]
	return verify.SnpAttestation(&pb.Attestation{
		Report: p, CertificateChain: chain,
		Product: &pb.SevProduct{Name: name},
	}, opts)
}

// known are the differences, by what they are about, and why this project is right.
var known = map[string]string{
	"Turin":            "go-sev-guest does not know the extensions of Turin's certificates (its issues 153 and 165)",
	"tcb-mismatch":     "go-sev-guest leaves it to its validate package that the certificate is for the reported TCB",
	"chip-mismatch":    "go-sev-guest leaves it to its validate package that the certificate is of the report's chip",
	"tcb-inconsistent": "go-sev-guest does not compare the TCBs of a report with each other",
	"vmpl": "a report that the host has asked for proves nothing: go-sev-guest leaves that to" +
		" its validate package",
	"stepping":     "go-sev-guest keeps four bits of the stepping and verifies what it has put together again",
	"Genoa family": "go-sev-guest does not know family 19h, models A0h to AFh (its pull request 192)",
}

// used are the differences that were seen.
var used = map[string]bool{}

// TestMain fails if a difference is listed that does not exist.
func TestMain(m *testing.M) {
	code := m.Run()
	all := flag.Lookup("test.run").Value.String() == "" && len(evidencetest.VectorFiles()) > 0
	for about := range known {
		if all && code == 0 && !used[about] {
			fmt.Fprintf(os.Stderr, "the difference %q was not seen\n", about)
			code = 1
		}
	}
	os.Exit(code)
}

// compare holds two judgements against each other. about names the known difference, "" for
// none; which of both accepts is then no matter, but they must differ.
func compare(t *testing.T, what, about string, ours, theirs error) {
	t.Helper()
	differ := (ours == nil) != (theirs == nil)
	used[about] = true
	switch {
	case differ && about == "":
		t.Errorf("%s: ours %v, theirs %v", what, ours, theirs)
	case !differ && about != "":
		t.Errorf("%s: the difference %q has gone: ours %v, theirs %v", what, about, ours, theirs)
	case about != "" && known[about] == "":
		t.Errorf("%s: the difference %q is not explained", what, about)
	}
}

// TestReports compares judgements on reports of all lines, with and without faults.
func TestReports(t *testing.T) {
	at := evidencetest.AsOf()
	put := func(off int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[off:], v) }
	}
	for _, line := range kds.Lines() {
		amd := evidencetest.NewAMD(t, line, 0)
		roots := evidencetest.Roots(t, amd)
		for name, c := range map[string]struct {
			ek     *evidencetest.Endorsed
			change func([]byte)
			about  string
			at     time.Time
		}{
			"good":            {amd.VCEK(t), func([]byte) {}, "", at},
			"version 5":       {amd.VCEK(t), put(0, 5), "", at},
			"VLEK":            {amd.VLEK(t), func([]byte) {}, "", at},
			"expired":         {amd.VCEK(t), func([]byte) {}, "", evidencetest.End().AddDate(1, 0, 0)},
			"not yet valid":   {amd.VCEK(t), func([]byte) {}, "", evidencetest.Begin().AddDate(-1, 0, 0)},
			"debug":           {amd.VCEK(t), func(b []byte) { b[10] |= 8 }, "", at},
			"algorithm":       {amd.VCEK(t), put(0x34, 2), "", at},
			"other chip":      {amd.VCEK(t), func(b []byte) { b[0x1a0]++ }, "chip-mismatch", at},
			"other TCB":       {amd.VCEK(t), func(b []byte) { b[0x187]-- }, "tcb-mismatch", at},
			"committed above": {amd.VCEK(t), func(b []byte) { b[0x1e7]++ }, "tcb-inconsistent", at},
			"host's report":   {amd.VCEK(t), put(0x30, 0xffffffff), "vmpl", at},
			"policy bit 17":   {amd.VCEK(t), func(b []byte) { b[10] &^= 2 }, "", at},
		} {
			raw := c.ek.Report(t, c.change)
			mine := ours(raw, c.ek.Cert.Raw, roots, c.at)
			other := theirs(raw, c.ek.Cert.Raw, amd.RootPEM(), line, c.at)
			about := c.about
			if line == kds.Turin && about == "" && mine == nil {
				about = "Turin"
			}
			compare(t, string(line)+"/"+name, differs(mine, other, line, about), mine, other)
		}
	}
}

// differs is what a difference is about, where the case has none of its own on this line.
func differs(mine, other error, line kds.Line, about string) string {
	if line == kds.Turin && about != "Turin" && mine != nil && other != nil {
		return "" // both refuse, for reasons of their own
	}
	return about
}

// TestDamagedReports compares judgements on a report of which one bit was changed.
func TestDamagedReports(t *testing.T) {
	amd := evidencetest.NewAMD(t, kds.Milan, 0)
	roots, ek := evidencetest.Roots(t, amd), amd.VCEK(t)
	good := ek.Report(t)
	for bit := 0; bit < 8*len(good); bit += 7 {
		bad := bytes.Clone(good)
		bad[bit/8] ^= 1 << (bit % 8)
		mine := ours(bad, ek.Cert.Raw, roots, evidencetest.AsOf())
		other := theirs(bad, ek.Cert.Raw, amd.RootPEM(), kds.Milan, evidencetest.AsOf())
		about := ""
		switch off := bit / 8; {
		case mine == nil || other != nil:
		case off == 0x18a:
			about = "stepping"
		}
		compare(t, fmt.Sprintf("bit %d of byte %#x", bit%8, bit/8), about, mine, other)
	}
}

// recordedDifferences are known differences on recorded vectors.
var recordedDifferences = map[string]string{
	"Zen 4c v5 report: family 19h model A0h is the Genoa line": "Genoa family",
}

// TestRecordedReports compares judgements on the vectors that this machine has.
func TestRecordedReports(t *testing.T) {
	evidencetest.EachVector(t, "snp", func(t *testing.T, v *evidencetest.Vector) {
		if v.Name(t, "roots") != "amd" {
			t.Skip("made by another test root: TestReports has its kind")
		}
		raw, ek := v.Input(t, "report"), v.Input(t, "ek")
		mine := ours(raw, ek, kds.AMD(), v.AsOf)
		line := kds.Milan
		if c, err := kds.ParseCertificate(ek); err == nil {
			line = c.Line
		}
		other := theirs(raw, ek, nil, line, v.AsOf)
		if mine == nil && other != nil && strings.Contains(other.Error(), "nknown") {
			compare(t, v.Title, "Genoa family", mine, other)
			return
		}
		compare(t, v.Title, recordedDifferences[v.Title], mine, other)
	})
}
