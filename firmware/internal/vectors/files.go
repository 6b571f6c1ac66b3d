package vectors

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
)

// file is an input of vectors.
type file struct {
	Rel    string // in the root of a distribution
	SHA256 string
	Derive *struct {
		Base *string
		Ops  []json.RawMessage
	}
}

func named(t testing.TB, name string) file {
	t.Helper()
	f, ok := all(t).Files[name]
	if !ok {
		t.Fatalf("no file %s among the vectors", name)
	}
	return f
}

// SHA256 returns the hash of a named file, which need not be on this machine.
func SHA256(t testing.TB, name string) (sum [32]byte) {
	t.Helper()
	if n, err := hex.Decode(sum[:], []byte(named(t, name).SHA256)); err != nil || n != len(sum) {
		t.Fatalf("%s: hash of %d bytes, %v", name, n, err)
	}
	return sum
}

// File returns the content of a named file, checked by its hash. Where this
// machine does not have it the test is skipped: see [Facts] for firmware.
func File(t testing.TB, name string) []byte {
	t.Helper()
	f := named(t, name)
	if f.Derive != nil {
		return f.derive(t)
	}
	other := false
	for _, c := range f.places(name) {
		b, err := os.ReadFile(c)
		if err != nil {
			continue
		}
		if sumOf(b) == f.SHA256 {
			return b
		}
		other = true
	}
	if other {
		t.Skipf("%s here is another version than the vector's", name)
	}
	t.Skipf("%s is not on this machine (run make setup; some files may not be distributed)", name)
	return nil
}

// Top is the directory of the project.
func Top() string {
	_, self, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(self), "../../..")
}

// Elsewhere is where files lie that may not be distributed: next to the project. A machine need not
// have them.
func Elsewhere(elem ...string) string {
	return filepath.Join(append([]string{Top(), "../shared"}, elem...)...)
}

// places are where a file may lie.
func (f file) places(name string) []string {
	top := Top()
	return []string{
		filepath.Join(top, ".cache/root", f.Rel), // unpacked by scripts/setup
		filepath.Join("/", f.Rel),                // installed package
		Elsewhere("testdata", name),
		filepath.Join(top, ".cache/guest", filepath.Base(name)),
		filepath.Join(top, ".cache", filepath.Base(name)), // by hand
	}
}

func sumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// derive makes a file from another, or from nothing.
func (f file) derive(t testing.TB) []byte {
	t.Helper()
	var b []byte
	if f.Derive.Base != nil {
		b = bytes.Clone(File(t, *f.Derive.Base))
	}
	defer func() {
		if sumOf(b) != f.SHA256 {
			t.Fatalf("derived is a file with SHA-256 %s, want %s", sumOf(b), f.SHA256)
		}
	}()
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
		case "ovmftest.AmdSev":
			b = ovmftest.AmdSev(ovmftest.Size(n(1)))
		case "ovmftest.Generic":
			b = ovmftest.Generic(ovmftest.Size(n(1)))
		default:
			t.Fatalf("unknown operation %v", op[0])
		}
	}
	return b
}

// Firmwares returns the names of the firmware images of distributions that vectors
// were computed from, and of what is derived from them.
func Firmwares(t testing.TB) []string {
	t.Helper()
	seen := map[string]bool{}
	for _, v := range all(t).Vectors {
		var in struct{ Firmware string }
		if v.In(t, &in); in.Firmware == "" {
			continue
		}
		f := named(t, in.Firmware)
		if made := f.Derive != nil && f.Derive.Base == nil; !made && !v.NeedsFile {
			seen[in.Firmware] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// Image returns a named firmware image if this machine has the version of the
// vectors, or what it is derived from.
func Image(t testing.TB, name string) (b []byte, ok bool) {
	t.Helper()
	f := named(t, name)
	if f.Derive != nil {
		if base := f.Derive.Base; base != nil {
			if _, ok := Image(t, *base); !ok {
				return nil, false
			}
		}
		return f.derive(t), true
	}
	for _, c := range f.places(name) {
		if b, err := os.ReadFile(c); err == nil && sumOf(b) == f.SHA256 {
			return b, true
		}
	}
	return nil, false
}

// AnyVersion returns a named file as this machine has it, of whatever version. The
// test fails without it, but for a file of a package that the registry lacks:
// make setup has recorded why.
func AnyVersion(t testing.TB, name, pkg string) []byte {
	t.Helper()
	places := named(t, name).places(name)
	for _, c := range places {
		if b, err := os.ReadFile(c); err == nil {
			return b
		}
	}
	if why, err := os.ReadFile(filepath.Join(Top(), ".cache/root", pkg+".unavailable")); err == nil {
		t.Skipf("the registry lacks %s: %s", pkg, why)
	}
	t.Fatalf("%s is in none of %v (run make setup)", name, places)
	return nil
}

// Made returns a named file that is made of nothing.
func Made(t testing.TB, name string) (b []byte, ok bool) {
	t.Helper()
	f := named(t, name)
	if f.Derive == nil || f.Derive.Base != nil {
		return nil, false
	}
	return f.derive(t), true
}
