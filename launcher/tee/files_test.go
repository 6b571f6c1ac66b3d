package tee_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// file makes a file in a directory of its own.
func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReadImage(t *testing.T) {
	lacks := func(es, snp, tdx string) map[string]string {
		return map[string]string{"none": "", "sev": "", "sev-es": es, "sev-snp": snp, "tdx": tdx, "mktme": ""}
	}
	const noES, noSNP, noTDX = "it has no SEV-ES reset block", "it has no SEV metadata", "it has no TDX metadata"
	odd, _ := ovmf.Looks([]byte("no image at all"))
	for name, c := range map[string]struct {
		content []byte
		want    *plan.Image
	}{
		"the AmdSev build": {
			ovmftest.AmdSev(ovmftest.ResetVector()), &plan.Image{HashArea: true, SecretArea: true, Lacks: lacks("",
				"", "")},
		},
		"the ordinary build": {ovmftest.Generic(ovmftest.ResetVector()), &plan.Image{Lacks: lacks("", "",
			"")}}, // its areas are empty
		"an image without tables": {ovmftest.Image(ovmftest.ResetVector()), &plan.Image{Lacks: lacks(noES, noSNP,
			noTDX)}},
		"one with a reset block": {
			ovmftest.Image(ovmftest.ResetVector(), ovmftest.ResetBlock(0x80b004)), &plan.Image{Lacks: lacks("",
				noSNP, noTDX)},
		},
		"one with a hash area": {
			ovmftest.Image(ovmftest.ResetVector(), ovmftest.HashArea(1, 2)),
			&plan.Image{HashArea: true, Lacks: lacks(noES, noSNP, noTDX)},
		},
		"one with a secret area": {
			ovmftest.Image(ovmftest.ResetVector(), ovmftest.SecretArea(1, 2)),
			&plan.Image{SecretArea: true, Lacks: lacks(noES, noSNP, noTDX)},
		},
		"one with no SEV sections": {
			ovmftest.Image(ovmftest.ResetVector(), ovmftest.SEVMetadata()), &plan.Image{Lacks: lacks(noES, noSNP,
				noTDX)},
		},
		"a file of something else": {[]byte("no image at all"), &plan.Image{Odd: odd, Lacks: lacks(noES, noSNP,
			noTDX)}},
		"an IGVM file": {[]byte("IGVM and more"), &plan.Image{IGVM: true, Lacks: map[string]string{}}},
	} {
		got := tee.ReadImage(file(t, string(c.content)))
		if !c.want.IGVM {
			c.want.Size = len(c.content)
			c.want.Reach = got.Reach // of TestReach
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestImagesThatCannotBeRead are unknown; the writer of a pipe is not waited for.
func TestImagesThatCannotBeRead(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{pipe, t.TempDir(), pipe + "x", ""} {
		if got := tee.ReadImage(name); got != nil {
			t.Errorf("%s: %+v, want nothing", name, got)
		}
		if tee.IsIGVM(name) {
			t.Errorf("%s is an IGVM file, want it not to be", name)
		}
	}
}

func TestIsIGVM(t *testing.T) {
	for content, want := range map[string]bool{
		"IGVM": true, "IGVM and more": true, "IGV": false, "": false, "igvm": false, " IGVM": false,
	} {
		if got := tee.IsIGVM(file(t, content)); got != want {
			t.Errorf("%q is an IGVM file: %t, want %t", content, got, want)
		}
	}
}

// bound is the spec of a guest that is bound by an ID block.
func bound(t *testing.T, block, auth string) string {
	t.Helper()
	keys := "id-block = '" + block + "'\nid-auth = '" + auth + "'"
	return strings.Replace(with("sev-snp", keys), "nothing", "id-block", 1)
}

func TestOwnerFiles(t *testing.T) {
	read := func(text string) (map[string][]byte, error) {
		s, err := tee.Parse([]byte(text), "vm.toml", "/specs")
		if err != nil {
			t.Fatal(err)
		}
		return s.ReadOwnerFiles()
	}
	good := file(t, " AAEC\n")
	got, err := read(bound(t, good, good))
	want := map[string][]byte{"id-block": {0, 1, 2}, "id-auth": {0, 1, 2}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for name, text := range map[string]string{
		"none": specOf("sev-snp"), "another technology": specOf("sev"),
		"one of two":   with("sev-snp", "id-block = '/nonexistent'"),
		"other of two": with("sev-snp", "id-auth = '/nonexistent'"),
	} {
		if got, err := read(text); err != nil || len(got) != 0 {
			t.Errorf("%s: %v, %v, want no file read", name, got, err)
		}
	}
	exactly := func(n int) string { return strings.Repeat("A", n) }
	for _, c := range []struct {
		name, block, auth, key string
		is                     error
	}{
		{"missing", good + "x", good, "id-block", fs.ErrNotExist},
		{"missing", good, good + "x", "id-auth", fs.ErrNotExist},
		{"not base64", file(t, "%"), good, "id-block", base64.CorruptInputError(0)},
		{"too large a block", file(t, exactly(1<<10+1)), good, "id-block", regular.ErrTooLarge},
		{"too large an authentication", good, file(t, exactly(16<<10+1)), "id-auth", regular.ErrTooLarge},
		{"as large as may be", file(t, exactly(1<<10)), file(t, exactly(16<<10)), "", nil},
	} {
		got, err := read(bound(t, c.block, c.auth))
		if c.is == nil {
			if err != nil {
				t.Errorf("%s: %v, want no error", c.name, err)
			}
			continue
		}
		if e := fault.As(err); got != nil || e == nil || e.Kind != fault.Spec || e.Key != c.key ||
			!errors.Is(err, c.is) {
			t.Errorf("%s: %v, %v, want an error about %s: %v", c.name, got, err, c.key, c.is)
		}
	}
}

// TestIDBlocks: the platform would refuse a wrong one only when the guest is let run.
func TestIDBlocks(t *testing.T) {
	key := func() *ecdsa.PrivateKey {
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	idKey, author := key(), key()
	sign := func(id sev.IDBlock, author crypto.Signer) map[string][]byte {
		id.Version = 1
		auth, err := sev.SignIDBlock(rand.Reader, id, idKey, author)
		if err != nil {
			t.Fatal(err)
		}
		return map[string][]byte{"id-block": id.Bytes(), "id-auth": auth}
	}
	block := sev.IDBlock{Policy: uint64(sev.SNPPolicyDefault)}
	for _, c := range []struct {
		name   string
		files  map[string][]byte
		change func(files map[string][]byte)
		author string // what QEMU is told
		want   string // part of the error; "" for none
	}{
		{"an ID block", sign(block, nil), nil, "", ""},
		{"one with an author", sign(block, author), nil, "on", ""},
		{"no files", nil, nil, "", "id-block: "},
		{
			"a short block", sign(block, nil),
			func(f map[string][]byte) { f["id-block"] = f["id-block"][1:] }, "", "id-block: ",
		},
		{
			"a short authentication", sign(block, nil),
			func(f map[string][]byte) { f["id-auth"] = f["id-auth"][1:] }, "", "id-auth: ",
		},
		{"another block", sign(block, nil), func(f map[string][]byte) { f["id-block"][0] ^= 1 }, "", "id-auth: "},
		{
			"a policy that was not signed",
			sign(sev.IDBlock{Policy: uint64(sev.SNPPolicyDefault | sev.SNPPolicyDebug)}, nil), nil,
			"",
			"the id block was signed for",
		},
	} {
		g := mustGuest(t, bound(t, "b", "a"))
		if c.change != nil {
			c.change(c.files)
		}
		f := testhost.Facts(func(f *plan.Facts) { f.OwnerFiles = c.files })
		p, err := planOf(g, f)
		if c.want != "" {
			if e := fault.As(err); e == nil || e.Kind != fault.Spec || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %v, want an error of kind Spec with %q", c.name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		object, _ := plan.ParseOptions(p.Argv).Protection()
		for property, want := range map[string]string{
			"id-block": base64.StdEncoding.EncodeToString(c.files["id-block"]),
			"id-auth":  base64.StdEncoding.EncodeToString(c.files["id-auth"]), "author-key-enabled": c.author,
		} {
			if got := object.Props[property]; got != want {
				t.Errorf("%s: %s is %q, want %q", c.name, property, got, want)
			}
		}
		covered := strings.Join(p.Covers.Covered, ", ")
		if !strings.Contains(covered, "guest policy (by the ID block)") || p.Latch != plan.UntilIDBlock {
			t.Errorf("%s: latch %s covers %s, want id-block and the policy", c.name, p.Latch, covered)
		}
	}
}

// The memory that metadata names has an end, of each technology its own; what lies in the
// image does not count.
func TestReach(t *testing.T) {
	image := ovmftest.Image(ovmftest.ResetVector(),
		ovmftest.SEVMetadata(
			ovmf.Section{GPA: 0x800000, Size: 0x9000, Type: ovmf.SectionMemory},
			ovmf.Section{GPA: 0x7000, Size: 0x1000, Type: ovmf.SectionCPUID},
		),
		ovmftest.TDXMetadata(
			ovmf.TDXSection{Type: ovmf.TDXSectionBFV, GPA: 0xffff0000, Size: 0x10000, FileSize: 0x10000},
			ovmf.TDXSection{Type: ovmf.TDXSectionTDHOB, GPA: 0x7f000000, Size: 0x2000},
		))
	want := map[string]uint64{host.SNP: 0x809000, host.TDX: 0x7f002000}
	if diff := cmp.Diff(want, tee.ReadImage(file(t, string(image))).Reach); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
