// Package vectors gives tests the digests and layouts that other
// implementations computed, and finds the files that these were computed from.
package vectors

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

//go:embed vectors.json
var vectorsJSON []byte

// Vector is one expectation.
type Vector struct {
	ID          string          `json:"id"`
	Kind        string          `json:"kind"`
	Inputs      json.RawMessage `json:"inputs"`
	Expected    json.RawMessage `json:"expected"`
	ExpectError bool            `json:"expect_error"`
	Source      string          `json:"source"`
}

type file struct {
	Rel    string
	SHA256 string
	Derive *struct {
		Base *string
		Ops  []json.RawMessage
	}
}

func load(t testing.TB) (files map[string]file, vs []Vector) {
	t.Helper()
	var all struct {
		Files   map[string]file
		Vectors []Vector
	}
	if err := json.Unmarshal(vectorsJSON, &all); err != nil {
		t.Fatal(err)
	}
	return all.Files, all.Vectors
}

// Each runs f as a subtest for each vector of the kind; there must be one.
func Each(t *testing.T, kind string, f func(t *testing.T, v Vector)) {
	t.Helper()
	_, vs := load(t)
	n := 0
	for _, v := range vs {
		if v.Kind == kind {
			n++
			t.Run(v.ID, func(t *testing.T) { f(t, v) })
		}
	}
	if n == 0 {
		t.Fatalf("no vector of kind %s", kind)
	}
}

// In decodes a vector's inputs, Want its expectation.
func (v Vector) In(t testing.TB, to any)   { t.Helper(); decode(t, v.Inputs, to) }
func (v Vector) Want(t testing.TB, to any) { t.Helper(); decode(t, v.Expected, to) }

func decode(t testing.TB, raw json.RawMessage, to any) {
	t.Helper()
	if err := json.Unmarshal(raw, to); err != nil {
		t.Fatal(err)
	}
}

// File returns the content of a named file, checked by its hash; where this
// machine does not have it the test is skipped.
func File(t testing.TB, name string) []byte {
	t.Helper()
	files, _ := load(t)
	f, ok := files[name]
	if !ok {
		t.Fatalf("no file %s among the vectors", name)
	}
	if f.Derive != nil {
		return f.derive(t)
	}
	_, self, _, _ := runtime.Caller(0)
	top := filepath.Join(filepath.Dir(self), "../../..")
	found := false
	for _, c := range []string{
		filepath.Join(top, ".cache/root", f.Rel),          // unpacked by scripts/setup
		filepath.Join("/", f.Rel),                         // installed package
		filepath.Join(top, "../shared/testdata", name),    // may not be distributed
		filepath.Join(top, ".cache", filepath.Base(name)), // by hand
	} {
		b, err := os.ReadFile(c)
		if err != nil {
			continue
		}
		found = true
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) == f.SHA256 {
			return b
		}
	}
	if found {
		t.Skipf("%s here is another version than the vector's", name)
	}
	t.Skipf("%s is not on this machine (run make setup; some files may not be distributed)", name)
	return nil
}

func (f file) derive(t testing.TB) []byte {
	t.Helper()
	var b []byte
	if f.Derive.Base != nil {
		b = bytes.Clone(File(t, *f.Derive.Base))
	}
	for _, raw := range f.Derive.Ops {
		var op []any
		decode(t, raw, &op)
		n := func(i int) int { return int(op[i].(float64)) }
		switch op[0] {
		case "tail":
			b = b[len(b)-n(1):]
		case "head":
			b = b[:n(1)]
		case "pattern":
			for i := range n(1) {
				b = append(b, byte((i*n(2)+n(3))%n(4)))
			}
		case "patch_end":
			patch, err := hex.DecodeString(op[2].(string))
			if err != nil {
				t.Fatal(err)
			}
			copy(b[len(b)-n(1):], patch)
		default:
			t.Fatalf("unknown operation %v", op[0])
		}
	}
	return b
}
