package plan_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
)

// TestVerityIsCovered: a disk whose root hash stands on a measured command line is covered by the
// measurement, and others are not.
func TestVerityIsCovered(t *testing.T) {
	hash := strings.Repeat("5a", 32)
	line := func(words string) string {
		return strings.Replace(snpSpec, `image = "k"`, "image = \"k\"\ncmdline = \""+words+"\"", 1)
	}
	const covered = "the disk that the initrd opens by roothash=5a5a5a5a… (dm-verity)"
	for name, c := range map[string]struct {
		spec string
		want bool
	}{
		"a hash":              {line("quiet roothash=" + hash), true},
		"none":                {line("quiet"), false},
		"one that is cut off": {line("roothash=" + hash[2:]), false},
		"no hash":             {line("roothash=" + strings.Repeat("zz", 32)), false},
		"another word":        {line("x.roothash=" + hash), false},
		"an unmeasured line": {
			strings.Replace(line("roothash="+hash), "kernel-hashes = true", "kernel-hashes = false", 1), false,
		},
	} {
		covers := mustPlan(t, c.spec, testhost.Facts()).Covers
		if got := slices.Contains(covers.Covered, covered); got != c.want {
			t.Errorf("%s: covered %q", name, covers.Covered)
		}
		if got := slices.Contains(covers.NotCovered, "other disks, and networks"); got != c.want {
			t.Errorf("%s: not covered %q", name, covers.NotCovered)
		}
	}
}
