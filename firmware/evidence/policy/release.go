package policy

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/sev"
)

// units of a limit.
var units = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}

// Limit is how many launches may get a secret in how long a time; 0 for no limit.
func (r *Release) Limit() (n int, per time.Duration) {
	number, unit, _ := strings.Cut(r.Max, "/")
	times, err := strconv.ParseUint(number, 10, 16)
	if err != nil || times == 0 || units[unit] == 0 {
		return 0, 0
	}
	return int(times), units[unit]
}

// isMax reports whether a text says how often a secret is given: a number and a time, as 6/h.
func isMax(text string) bool {
	n, _ := (&Release{Max: text}).Limit()
	return n > 0
}

// Modes of releases.
const (
	Repeat   = "repeat"    // every launch that is accepted gets it
	Once     = "once"      // one launch, ever
	Ask      = "ask"       // a person approves each launch
	FirstAsk = "first-ask" // a person approves a chip or digest that is new
)

// Kinds of secrets.
const (
	Raw  = "raw"
	LUKS = "luks" // opens a volume whose header is bound
)

// Path is where the secret's file lies; "" for a command. credential:NAME is a file that the
// service manager hands over.
func (f *File) Path(r *Release) (string, error) {
	name, err := credential.Path(r.File)
	return f.path(name), err
}

// Dir is what relative paths begin at, and where commands run.
func (f *File) Dir() string { return f.dir }

// GuestPolicy is what the platform must enforce for a guest of SEV, or of SEV-ES.
func (t *SEV) GuestPolicy(es bool) sev.Policy {
	p := sev.PolicyDefault
	if es {
		p |= sev.PolicyES
	}
	if major, minor, ok := sev.ParseVersion(t.MinAPI); ok {
		p |= sev.Policy(major)<<16 | sev.Policy(minor)<<24
	}
	return p
}

// Table is what the policy demands of SEV or SEV-ES; nil if it has no such table.
func (f *File) Table(technology string) *SEV {
	switch technology {
	case exchange.SEV:
		return f.SEV
	case exchange.SEVES:
		return f.SEVES
	}
	return nil
}

// CEKs are the SHA-256 of the keys of chips that a table accepts.
func (f *File) CEKs(technology string) (list [][]byte, anyChip bool, err error) {
	return f.chips(technology, f.Table(technology).Chips, 32)
}

func (f *File) checkKEM() error {
	for _, k := range f.KEM {
		if k != exchange.X25519 && k != exchange.Hybrid {
			return f.errorf("kem", "%v", nearest.Unknown("mechanism", k, []string{exchange.Hybrid, exchange.X25519}))
		}
	}
	return nil
}

// kinds and modes of releases.
var (
	kinds = []string{Raw, LUKS}
	modes = []string{Repeat, Once, Ask, FirstAsk}
)

func (f *File) checkReleases() error {
	seen := map[string]bool{}
	for _, r := range f.Release {
		key := "release " + r.Secret
		bad := func(k, format string, args ...any) error { return f.errorf(key+": "+k, format, args...) }
		switch {
		case !exchange.IsName(r.Secret):
			return bad("secret", "%q: must be up to 63 lower-case letters, digits, dots and dashes", r.Secret)
		case seen[r.Secret]:
			return bad("secret", "stands there twice")
		case r.Kind != "" && !slices.Contains(kinds, r.Kind):
			return bad("kind", "%v", nearest.Unknown("kind", r.Kind, kinds))
		case !slices.Contains(modes, r.Mode):
			return bad("mode", "%v", nearest.Unknown("mode", r.Mode, modes))
		case r.Max != "" && !isMax(r.Max):
			return bad("max", "%q: must be a number of launches and a time, such as 6/h", r.Max)
		case (r.File == "") == (len(r.Command) == 0):
			return bad("file", "must be there, or command, and not both")
		case r.Kind == LUKS && !isHeader(r.LUKSHeader):
			return bad(
				"luks-header",
				`%q: must be the SHA-256 of the disk's header, or "unchecked": the host could`+
					` put in one without encryption`,
				r.LUKSHeader,
			)
		case r.Kind != LUKS && r.LUKSHeader != "":
			return bad("luks-header", `is for kind = "luks"`)
		}
		seen[r.Secret] = true
	}
	return nil
}

func isHeader(text string) bool {
	return text == exchange.Unchecked || exchange.IsSHA256(text)
}
