package evidencetest

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

// Vector is an expectation of a judgement on evidence (cvm-evidence-vectors/1).
type Vector struct {
	ID       string                     `json:"id"`
	Kind     string                     `json:"kind"` // snp, tdx, ek, ccel
	Title    string                     `json:"title"`
	Inputs   map[string]json.RawMessage `json:"inputs"` // names of files
	Edit     []edit                     `json:"edit"`
	AsOf     time.Time                  `json:"as_of"`
	Policy   json.RawMessage            `json:"policy"`
	Expected struct {
		OK        bool              `json:"ok"`
		Reason    []string          `json:"reason"` // any of them is right
		TCBStatus string            `json:"tcb_status"`
		Fields    map[string]string `json:"fields"`
	} `json:"expected"`

	files map[string]evidenceFile
}

type evidenceFile struct {
	Base64 []byte `json:"base64"`
}

// edit is a change of an input before it is used.
type edit struct {
	Input, Op      string
	Offset, Length int
	Hex, Field     string
	From, To       string
}

// VectorFiles are the files of evidence vectors that this machine has: those that may not be
// distributed, if they are here, and those that VMLATCH_VECTORS names.
func VectorFiles() (files []string) {
	if own := vectors.Elsewhere("facts", "evidence-vectors.json"); exists(own) {
		files = append(files, own)
	}
	return append(files, vectors.More("cvm-evidence-vectors/1")...)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// EachVector runs f as a subtest for each evidence vector of the kind.
func EachVector(t *testing.T, kind string, f func(t *testing.T, v *Vector)) {
	t.Helper()
	found := 0
	for _, file := range VectorFiles() {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c struct {
			Files   map[string]evidenceFile
			Vectors []*Vector
		}
		unmarshal(t, b, &c)
		for _, v := range c.Vectors {
			if v.Kind != kind {
				continue
			}
			found++
			v.files = c.Files
			t.Run(v.ID, func(t *testing.T) { f(t, v) })
		}
	}
	if found == 0 {
		t.Skip("recorded evidence of other projects may not be distributed, and is not on this machine")
	}
}

// Input returns an input after its edits; nil if the vector has none of the name.
func (v *Vector) Input(t testing.TB, name string) []byte {
	t.Helper()
	raw, ok := v.Inputs[name]
	if !ok {
		return nil
	}
	var file string
	unmarshal(t, raw, &file)
	b := bytes.Clone(v.File(t, file))
	for _, e := range v.Edit {
		if e.Input == name {
			b = e.apply(t, b)
		}
	}
	return b
}

// Name is the name of an input's file, or a prefix of several.
func (v *Vector) Name(t testing.TB, input string) (name string) {
	t.Helper()
	unmarshal(t, v.Inputs[input], &name)
	return name
}

// File returns a file of the vectors; nil if there is none.
func (v *Vector) File(t testing.TB, name string) []byte { return v.files[name].Base64 }

func (e edit) apply(t testing.TB, b []byte) []byte {
	t.Helper()
	data, err := hex.DecodeString(e.Hex)
	if err != nil {
		t.Fatal(err)
	}
	switch e.Op {
	case "xor":
		for i, x := range data {
			b[e.Offset+i] ^= x
		}
	case "set":
		copy(b[e.Offset:], data)
	case "truncate":
		b = b[:e.Length]
	case "append":
		b = append(b, data...)
	case "set-field", "replace-in-field":
		fields := map[string]string{}
		unmarshal(t, b, &fields)
		if e.Op == "set-field" {
			fields[e.Field] = e.To
		} else {
			fields[e.Field] = strings.Replace(fields[e.Field], e.From, e.To, 1)
		}
		if b, err = json.Marshal(fields); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("unknown edit %q", e.Op)
	}
	return b
}

// Demands decodes the vector's policy. Unknown demands are an error: none may be overlooked.
func (v *Vector) Demands(t testing.TB, to any) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(v.Policy))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		t.Fatal(err)
	}
}

// Hold compares a verdict's reason code, "" for none, with the expectation.
func (v *Vector) Hold(t testing.TB, reason string, err error) {
	t.Helper()
	switch {
	case v.Expected.OK && err != nil:
		t.Errorf("%s: %v, want it accepted", v.Title, err)
	case !v.Expected.OK && !slices.Contains(v.Expected.Reason, reason):
		t.Errorf("%s: reason %q (%v), want one of %q", v.Title, reason, err, v.Expected.Reason)
	}
}

// Unhex is bytes in hex, for policies.
type Unhex []byte

func (u *Unhex) UnmarshalText(text []byte) (err error) {
	*u, err = hex.DecodeString(string(text))
	return err
}

func unmarshal(t testing.TB, raw []byte, to any) {
	t.Helper()
	if err := json.Unmarshal(raw, to); err != nil {
		t.Fatal(err)
	}
}
