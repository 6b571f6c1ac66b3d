package evidence_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/evidencetest"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
)

// TestRecognise: evidence is found in what people have it in, and of other files it is said what
// they are.
func TestRecognise(t *testing.T) {
	le := binary.LittleEndian
	ek := evidencetest.NewAMD(t, kds.Milan, 0).VCEK(t)
	rep := ek.Report(t)
	quo := evidencetest.NewIntel(t).Platform(t, true).Quote(t)
	entry := append(append(report.GUIDVCEK[:], 48, 0, 0, 0, 2, 0, 0, 0), make([]byte, 24)...)
	table := slices.Concat(rep, entry, []byte("ek"))
	response := make([]byte, 4000)
	le.PutUint32(response[4:], report.Size)
	copy(response[0x20:], rep)
	hcl := make([]byte, 2600)
	copy(hcl, "HCLA")
	copy(hcl[0x20:], rep)
	le.PutUint32(hcl[0x20+report.Size+8:], 2)
	versioned := func(v byte) []byte {
		b := slices.Clone(table)
		b[0] = v
		return b
	}
	headed := append(slices.Clone(response[:0x20]), rep...)
	for name, c := range map[string]struct {
		b        []byte
		is       string
		wrapping string
	}{
		"report":              {rep, evidence.SNP, ""},
		"report with table":   {table, evidence.SNP, "table"},
		"with an empty table": {append(slices.Clone(rep), make([]byte, 24)...), evidence.SNP, "table"},
		"response":            {response, evidence.SNP, "/dev/sev-guest"},
		"oldest with table":   {versioned(2), evidence.SNP, "table"},
		"later with table":    {versioned(6), evidence.SNP, "table"},
		"newest with table":   {versioned(5), evidence.SNP, "table"},
		"short response":      {headed, evidence.SNP, "/dev/sev-guest"},
		"a line's end":        {append(slices.Clone(rep), '\n'), evidence.SNP, "line's end"},
		"paravisor":           {hcl, evidence.SNP, "paravisor"},
		"report in hex":       {[]byte(hex.EncodeToString(rep) + "\n"), evidence.SNP, "in hex"},
		"report in base64":    {[]byte(base64.StdEncoding.EncodeToString(rep)), evidence.SNP, "in base64"},
		"lines of base64":     {bytes.Join(slices.Collect(slices.Chunk([]byte(base64.StdEncoding.EncodeToString(rep)), 76)), []byte("\n")), evidence.SNP, "in base64"},
		"quote":               {quo, evidence.TDX, ""},
		"quote with a buffer": {append(slices.Clone(quo), make([]byte, 3000)...), evidence.TDX, ""},
		"quote in base64url":  {[]byte(base64.RawURLEncoding.EncodeToString(quo)), evidence.TDX, "in base64"},
		"response in hex":     {[]byte(hex.EncodeToString(response)), evidence.SNP, "/dev/sev-guest, in hex"},
	} {
		e, err := evidence.Recognise(c.b)
		if err != nil || e.Technology != c.is || !strings.Contains(e.Wrapping, c.wrapping) ||
			(e.Wrapping == "") != (c.wrapping == "") {
			t.Errorf("%s: %+v, %v, want %s %q", name, e, err, c.is, c.wrapping)
		}
	}
	failed := make([]byte, 4000)
	le.PutUint32(failed, 0x16)
	td := slices.Clone(hcl)
	le.PutUint32(td[0x20+report.Size+8:], 4)
	tdReport := make([]byte, 1024)
	tdReport[0] = 0x81
	sgx := make([]byte, 3500)
	sgx[0] = 3
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"nothing":            {nil, "empty"},
		"a failed response":  {failed, "status 0x16"},
		"a failed short one": {append([]byte{1}, headed[1:]...), "unknown kind"},
		"paravisor of TDX":   {td, "TDREPORT"},
		"TDREPORT":           {tdReport, "TDREPORT"},
		"SGX":                {sgx, "SGX"},
		"trustee":            {[]byte(`{"attestation_report":{"version":3}}`), "trustee"},
		"quote in JSON":      {[]byte(`{"cc_eventlog":null,"quote":"BAAC"}`), `"quote"`},
		"other JSON":         {[]byte(`{"x":1}`), "JSON object"},
		"token":              {[]byte("eyJhbGciOiJSUzI1NiJ9.e30."), "token"},
		"certificate":        {evidencetest.NewAMD(t, kds.Milan, 0).RootPEM(), "bundle"},
		"TPM":                {append([]byte{0xff, 'T', 'C', 'G'}, make([]byte, 200)...), "TPM"},
		"cut":                {rep[:1000], "cut off"},
		"one too many":       {append(slices.Clone(rep), 0), "unknown kind"},
		"noise":              {bytes.Repeat([]byte{0x55}, 5000), "unknown kind"},
		"too large":          {make([]byte, evidence.MaxSize+1), "at most"},
	} {
		e, err := evidence.Recognise(c.b)
		if !errors.Is(err, evidence.ErrUnknown) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v, want %q", name, e, err, c.want)
		}
	}
	if _, err := evidence.Recognise(quo[:700]); refusal.Of(err) == nil {
		t.Errorf("a cut quote: %v, want a refusal", err)
	}
}

func FuzzRecognise(f *testing.F) {
	f.Add(evidencetest.NewIntel(f).Platform(f, true).Quote(f))
	f.Add(evidencetest.NewAMD(f, kds.Milan, 0).VCEK(f).Report(f))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = evidence.Recognise(b) })
}
