//go:build !quick

package report_test

import (
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

// demands are a policy as the vectors write it.
type demands struct {
	Measurement    evidencetest.Unhex   `json:"measurement"`
	ReportData     evidencetest.Unhex   `json:"report_data"`
	HostData       evidencetest.Unhex   `json:"host_data"`
	IDKey          evidencetest.Unhex   `json:"id_key_digest"`
	AuthorKey      evidencetest.Unhex   `json:"author_key_digest"`
	FamilyID       evidencetest.Unhex   `json:"family_id"`
	ImageID        evidencetest.Unhex   `json:"image_id"`
	VMPL           *uint32              `json:"vmpl"`
	AllowDebug     bool                 `json:"allow_debug"`
	AllowSMT       bool                 `json:"allow_smt"`
	AllowAgent     bool                 `json:"allow_migration_agent"`
	AllowProvision bool                 `json:"allow_provisional"`
	AllowVLEK      bool                 `json:"allow_vlek"`
	SingleSocket   bool                 `json:"require_single_socket"`
	AliasCheck     bool                 `json:"require_alias_check"`
	RequireCRL     bool                 `json:"require_crl"`
	MinTCB         map[string]uint8     `json:"min_tcb"`
	MinFirmware    string               `json:"min_firmware"`
	MinGuestSVN    uint32               `json:"min_guest_svn"`
	LaunchMit      uint64               `json:"min_launch_mitigations"`
	CurrentMit     uint64               `json:"min_current_mitigations"`
	Chips          []evidencetest.Unhex `json:"chip_ids"`
}

func (d *demands) policy(t *testing.T) *report.Policy {
	t.Helper()
	p := &report.Policy{
		ReportData: d.ReportData, HostData: d.HostData, IDKeyDigest: d.IDKey, AuthorKey: d.AuthorKey,
		FamilyID: d.FamilyID, ImageID: d.ImageID, VMPL: d.VMPL,
		AllowDebug: d.AllowDebug, AllowSMT: d.AllowSMT, AllowMigrationAgent: d.AllowAgent,
		AllowProvisional: d.AllowProvision, AllowVLEK: d.AllowVLEK, RequireSingleSocket: d.SingleSocket,
		RequireAliasCheck: d.AliasCheck, RequireCRL: d.RequireCRL, MinGuestSVN: d.MinGuestSVN,
		LaunchMit: d.LaunchMit, CurrentMit: d.CurrentMit,
	}
	if d.Measurement != nil {
		p.Measurements = [][]byte{d.Measurement}
	}
	for _, c := range d.Chips {
		p.Chips = append(p.Chips, c)
	}
	if d.MinTCB != nil {
		p.MinTCB = map[kds.Line]map[string]uint8{}
		for _, l := range kds.Lines() {
			p.MinTCB[l] = d.MinTCB
		}
	}
	if d.MinFirmware != "" {
		major, minor, ok := sev.ParseVersion(d.MinFirmware)
		if !ok {
			t.Fatalf("version %q", d.MinFirmware)
		}
		p.MinFirmware = &sev.Build{Major: major, Minor: minor}
	}
	return p
}

// roots are those that a vector names by a prefix.
func roots(t *testing.T, v *evidencetest.Vector) *kds.Roots {
	t.Helper()
	var text strings.Builder
	for _, l := range kds.Lines() {
		for _, which := range []string{"ark", "ask", "asvk"} {
			if der := v.File(t, v.Name(t, "roots")+"/"+string(l)+"-"+which); der != nil {
				_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der})
			}
		}
	}
	r, err := kds.ParseRoots([]byte(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func reasonOf(err error) string {
	if e := refusal.Of(err); e != nil {
		return string(e.Reason)
	}
	return ""
}

func TestVectors(t *testing.T) {
	evidencetest.EachVector(t, "snp", func(t *testing.T, v *evidencetest.Vector) {
		var d demands
		v.Demands(t, &d)
		err := judge(t, v, d.policy(t))
		v.Hold(t, reasonOf(err), err)
	})
}

func judge(t *testing.T, v *evidencetest.Vector, p *report.Policy) error {
	t.Helper()
	r, err := report.Parse(v.Input(t, "report"))
	if err != nil {
		return err
	}
	e := &report.Evidence{Report: r, Roots: roots(t, v)}
	if err := r.Form(); err != nil {
		return err
	}
	if e.EK, err = kds.ParseCertificate(v.Input(t, "ek")); err != nil {
		return err
	}
	if b := v.Input(t, "crl"); b != nil {
		crl, err := kds.ParseCRL(b)
		if err != nil {
			return err
		}
		e.CRLs = append(e.CRLs, crl)
	}
	return e.Verify(v.AsOf, p)
}

func TestCertificateVectors(t *testing.T) {
	evidencetest.EachVector(t, "ek", func(t *testing.T, v *evidencetest.Vector) {
		c, err := kds.ParseCertificate(v.Input(t, "ek"))
		if err == nil {
			err = roots(t, v).Chain(c, v.AsOf)
		}
		v.Hold(t, reasonOf(err), err)
		if err != nil {
			return
		}
		got := map[string]string{"kind": c.Signer.String(), "product": string(c.Line), "csp": c.CSP}
		for _, part := range kds.Components() {
			got[part.Name] = strconv.Itoa(int(part.In(c.TCB)))
		}
		for field, want := range v.Expected.Fields {
			if got[field] != want {
				t.Errorf("%s is %q, want %q", field, got[field], want)
			}
		}
	})
}

// TestFields: what other implementations read from recorded reports.
func TestFields(t *testing.T) {
	vectors.Each(t, "snp-report-fields", func(t *testing.T, v vectors.Vector) {
		var in struct{ File string }
		var want map[string]any
		v.In(t, &in)
		v.Want(t, &want)
		r, err := report.Parse(vectors.File(t, in.File))
		if err != nil {
			t.Fatal(err)
		}
		number := func(n uint64) string { return fmt.Sprintf("%#x", n) }
		fms := uint32(r.Family&^0xf)<<16 | uint32(r.Family&0xf)<<8 | uint32(r.Model>>4)<<16 |
			uint32(r.Model&0xf)<<4 | uint32(r.Stepping)
		for name, got := range map[string]any{
			"version": float64(r.Version), "guest_svn": float64(r.GuestSVN), "vmpl": float64(r.VMPL),
			"signature_algo": float64(r.Algorithm), "policy": number(uint64(r.Policy)),
			"platform_info": number(uint64(r.Platform)), "signer_info": number(uint64(r.SignerInfo)),
			"current_tcb": number(r.CurrentTCB), "reported_tcb": number(r.ReportedTCB),
			"committed_tcb": number(r.CommittedTCB), "launch_tcb": number(r.LaunchTCB),
			"current_version":   fmt.Sprintf("%d.%d.%d", r.Current.Major, r.Current.Minor, r.Current.Build),
			"committed_version": fmt.Sprintf("%d.%d.%d", r.Committed.Major, r.Committed.Minor, r.Committed.Build),
			"family_id":         hex.EncodeToString(r.FamilyID[:]), "image_id": hex.EncodeToString(r.ImageID[:]),
			"report_data": hex.EncodeToString(r.ReportData[:]), "measurement": hex.EncodeToString(r.Measurement[:]),
			"host_data": hex.EncodeToString(r.HostData[:]), "id_key_digest": hex.EncodeToString(r.IDKeyDigest[:]),
			"author_key_digest": hex.EncodeToString(r.AuthorKey[:]), "report_id": hex.EncodeToString(r.ReportID[:]),
			"report_id_ma": hex.EncodeToString(r.ReportIDMA[:]), "chip_id": hex.EncodeToString(r.ChipID[:]),
			"cpuid1eax_fms": number(uint64(fms)),
		} {
			if want[name] != got {
				t.Errorf("%s is %v, want %v", name, got, want[name])
			}
			delete(want, name)
		}
		for name := range want {
			t.Errorf("%s is not compared", name)
		}
	})
}
