//go:build !quick

package quote_test

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"strconv"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// demands are a policy as the vectors write it.
type demands struct {
	MRTD          evidencetest.Unhex            `json:"mrtd"`
	ReportData    evidencetest.Unhex            `json:"report_data"`
	MRConfigID    evidencetest.Unhex            `json:"mrconfigid"`
	MROwner       evidencetest.Unhex            `json:"mrowner"`
	MROwnerConfig evidencetest.Unhex            `json:"mrownerconfig"`
	MRSEAM        evidencetest.Unhex            `json:"mrseam"`
	XFAM          evidencetest.Unhex            `json:"xfam"`
	RTMR          map[string]evidencetest.Unhex `json:"rtmr"`
	AllowDebug    bool                          `json:"allow_debug"`
	AllowNoVE     bool                          `json:"allow_no_sept_ve_disable"`
	Accept        []collateral.Status           `json:"accept_status"`
	Advisories    []string                      `json:"reject_advisories"`
	Evaluation    int                           `json:"min_tcb_evaluation_number"`
	FMSPC         []evidencetest.Unhex          `json:"fmspc"`
	PPIDs         []evidencetest.Unhex          `json:"ppids"`
	NoCollateral  bool                          `json:"no_collateral"`
	NoServiceTD   bool                          `json:"require_no_service_td"`
}

func (d *demands) policy(t *testing.T) *quote.Policy {
	t.Helper()
	p := &quote.Policy{
		ReportData: d.ReportData, MRConfigID: d.MRConfigID, MROwner: d.MROwner, MROwnerConfig: d.MROwnerConfig,
		MRSEAM: d.MRSEAM, XFAM: d.XFAM, AllowDebug: d.AllowDebug, AllowNoSEPTVEDisable: d.AllowNoVE,
		AllowAttributes: attr.PKS | attr.KL | attr.Perfmon | attr.TPA | attr.Migratable,
		AllowServiceTD:  !d.NoServiceTD, NoCollateral: d.NoCollateral, AcceptStatus: d.Accept,
		RejectAdvisories: d.Advisories, MinEvaluation: d.Evaluation,
	}
	if d.MRTD != nil {
		p.MRTD = [][]byte{d.MRTD}
	}
	for i, want := range d.RTMR {
		n, err := strconv.Atoi(i)
		if err != nil || n > 3 {
			t.Fatalf("RTMR%s", i)
		}
		p.RTMR[n] = [][]byte{want}
	}
	for _, f := range d.FMSPC {
		p.FMSPC = append(p.FMSPC, f)
	}
	for _, f := range d.PPIDs {
		p.Platforms = append(p.Platforms, f)
	}
	return p
}

func reasonOf(err error) string {
	if e := refusal.Of(err); e != nil {
		return string(e.Reason)
	}
	return ""
}

func TestVectors(t *testing.T) {
	evidencetest.EachVector(t, "tdx", func(t *testing.T, v *evidencetest.Vector) {
		var d demands
		v.Demands(t, &d)
		verdict, err := judge(t, v, d.policy(t))
		v.Hold(t, reasonOf(err), err)
		if want := v.Expected.TCBStatus; want != "" && (verdict == nil || string(verdict.State.Status) != want) {
			t.Errorf("status %+v, want %s", verdict, want)
		}
	})
}

func judge(t *testing.T, v *evidencetest.Vector, p *quote.Policy) (*quote.Verdict, error) {
	t.Helper()
	q, err := quote.Parse(v.Input(t, "quote"))
	if err != nil {
		return nil, err
	}
	e := &quote.Evidence{Quote: q}
	e.Root, err = collateral.ParseRoot(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: v.Input(t, "root")}))
	if err != nil {
		t.Fatal(err)
	}
	if b := v.Input(t, "collateral"); b != nil {
		if e.Collateral, err = collateral.Parse(b); err != nil {
			return nil, err
		}
	}
	return e.Verify(v.AsOf, p)
}

// TestFields: what other implementations read from recorded quotes.
func TestFields(t *testing.T) {
	vectors.Each(t, "tdx-quote-fields", func(t *testing.T, v vectors.Vector) {
		var in struct{ File string }
		var all struct {
			Version int `json:"quote_version"`
			Body    struct {
				V5 map[string]any `json:"td_quote_body_v5"`
			}
		}
		var want map[string]any
		v.In(t, &in)
		v.Want(t, &all)
		v.Want(t, &want)
		q, err := quote.Parse(vectors.File(t, in.File))
		if err != nil {
			t.Fatal(err)
		}
		if int(q.Version) != all.Version {
			t.Errorf("version %d, want %d", q.Version, all.Version)
		}
		if all.Version == 5 {
			want = all.Body.V5
		}
		le := func(n uint64) string { return hex.EncodeToString(binary.LittleEndian.AppendUint64(nil, n)) }
		b := &q.Body
		got := map[string]string{
			"tee_tcb_svn": hex.EncodeToString(b.TEETCBSVN[:]), "mr_seam": hex.EncodeToString(b.MRSEAM[:]),
			"mr_signer_seam": hex.EncodeToString(b.MRSignerSEAM[:]), "td_attributes": le(uint64(b.Attributes)),
			"seam_attributes": hex.EncodeToString(b.SEAMAttributes[:]), "xfam": hex.EncodeToString(b.XFAM[:]),
			"mr_td": hex.EncodeToString(b.MRTD[:]), "mr_config_id": hex.EncodeToString(b.MRConfigID[:]),
			"mr_owner": hex.EncodeToString(b.MROwner[:]), "mr_owner_config": hex.EncodeToString(b.MROwnerConfig[:]),
			"report_data": hex.EncodeToString(b.ReportData[:]),
			"rtmr0":       hex.EncodeToString(b.RTMR[0][:]), "rtmr1": hex.EncodeToString(b.RTMR[1][:]),
			"rtmr2": hex.EncodeToString(b.RTMR[2][:]), "rtmr3": hex.EncodeToString(b.RTMR[3][:]),
		}
		if all.Version == 5 {
			got["tee_tcb_svn2"] = hex.EncodeToString(b.TEETCBSVN2[:])
			got["mr_service_td"] = hex.EncodeToString(b.MRServiceTD[:])
			for i, r := range want["rtmrs"].([]any) {
				want[fmt.Sprintf("rtmr%d", i)] = r
			}
		}
		for name, value := range got {
			if want[name] != value {
				t.Errorf("%s is %v, want %v", name, value, want[name])
			}
		}
	})
}
