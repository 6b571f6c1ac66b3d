package policy

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

// Schema names the format.
const Schema = "latch-policy/1"

// MaxSize is the longest policy file, in bytes.
const MaxSize = 1 << 20

// ErrPolicy is wrapped by errors about policy files.
var ErrPolicy = errors.New("policy")

// File is a policy as it is written.
type File struct {
	Schema   string    `toml:"schema"`
	Name     string    `toml:"name"`
	Guest    *Guest    `toml:"guest"`
	SNP      *SNP      `toml:"sev-snp"`
	TDX      *TDX      `toml:"tdx"`
	SEVES    *SEV      `toml:"sev-es"`
	SEV      *SEV      `toml:"sev"`
	VTPM     *VTPM     `toml:"vtpm"`
	Release  []Release `toml:"release"`
	Emulated *Emulated `toml:"emulated"`
	KEM      []string  `toml:"kem"` // key encapsulation mechanisms besides the hybrid one
	Tolerate Tolerate  `toml:"tolerate"`

	dir string // what relative paths begin at
}

// Guest are the owner's copies of what the guest boots.
type Guest struct {
	Firmware string `toml:"firmware"`
	Kernel   string `toml:"kernel"`
	Initrd   string `toml:"initrd"`
	Cmdline  string `toml:"cmdline"` // a file
	Config   string `toml:"config"`  // a file with a table [config], such as the VM's spec
	CPUs     int    `toml:"cpus"`
	CPU      string `toml:"cpu"`
}

// SNP is what an SEV-SNP guest must be.
type SNP struct {
	Digests     []string                    `toml:"digests"` // in the place of [guest]
	Chips       any                         `toml:"chips"`
	HostACPI    string                      `toml:"host-acpi"`
	Policy      []string                    `toml:"policy"`
	MinFirmware string                      `toml:"min-firmware"`
	MinTCB      map[string]map[string]uint8 `toml:"min-tcb"`
	MinGuestSVN uint32                      `toml:"min-guest-svn"`
	VMPL        *uint32                     `toml:"vmpl"`
	AliasCheck  *bool                       `toml:"alias-check"`
	Provisional bool                        `toml:"provisional"`
	VLEK        bool                        `toml:"vlek"`
	Debug       bool                        `toml:"debug"`
	CRL         *bool                       `toml:"crl"`
	HostData    string                      `toml:"host-data"`
	IDKey       string                      `toml:"id-key"`
	AuthorKey   string                      `toml:"author-key"`
	FamilyID    string                      `toml:"family-id"`
	ImageID     string                      `toml:"image-id"`
	LaunchMit   uint64                      `toml:"launch-mitigations"`
	CurrentMit  uint64                      `toml:"current-mitigations"`
}

// TDX is what a trust domain must be.
type TDX struct {
	MRTD          []string `toml:"mrtd"` // in the place of [guest], as the next two
	RTMR1         []string `toml:"rtmr1"`
	RTMR2         []string `toml:"rtmr2"`
	Profile       string   `toml:"firmware-profile"`
	RTMR0         string   `toml:"rtmr0"`
	Chips         any      `toml:"chips"`
	FMSPC         []string `toml:"fmspc"`
	HostACPI      string   `toml:"host-acpi"`
	AcceptTCB     []string `toml:"accept-tcb"`
	Advisories    []string `toml:"reject-advisories"`
	MinEvaluation int      `toml:"min-evaluation"`
	Attributes    []string `toml:"attributes"`
	Debug         bool     `toml:"debug"`
	ServiceTD     bool     `toml:"service-td"`
	MRConfigID    string   `toml:"mrconfigid"`
	MROwner       string   `toml:"mrowner"`
	MROwnerConfig string   `toml:"mrownerconfig"`
	MRSEAM        string   `toml:"mrseam"`
	XFAM          string   `toml:"xfam"`
}

// SEV is what a guest of SEV or SEV-ES must be. Its host asks on its behalf.
type SEV struct {
	Chips  any    `toml:"chips"`
	MinAPI string `toml:"min-api"`
}

// Release is a secret that the guest gets.
type Release struct {
	Secret     string   `toml:"secret"`
	Kind       string   `toml:"kind"`
	LUKSHeader string   `toml:"luks-header"`
	File       string   `toml:"file"`
	Command    []string `toml:"command"`
	Mode       string   `toml:"mode"`
	Max        string   `toml:"max"`
}

// Emulated is the root of a test platform.
type Emulated struct {
	Root string `toml:"root"`
}

// Tolerate is how long things may be used after their date.
type Tolerate struct {
	CRLStale        string `toml:"crl-stale"`
	CollateralStale string `toml:"collateral-stale"`
}

// Read reads a policy file. Nothing that it names is read yet.
func Read(name string) (*File, error) {
	b, err := regular.Read(name, MaxSize)
	if err != nil {
		return nil, err
	}
	f, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	f.dir = filepath.Dir(name)
	return f, nil
}

// Parse reads a policy. Relative paths begin at the working directory.
func Parse(b []byte) (*File, error) {
	b = bytes.TrimPrefix(b, []byte("\uFEFF")) // which editors put there
	f := &File{dir: "."}
	d := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields()
	err := d.Decode(f)
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		e := unknown.Errors[0]
		row, _ := e.Position()
		return nil, fmt.Errorf("%w: line %d: unknown key %s", ErrPolicy, row, strings.Join(e.Key(), "."))
	}
	var syntax *toml.DecodeError
	if errors.As(err, &syntax) {
		row, _ := syntax.Position()
		if key := strings.Join(syntax.Key(), "."); key != "" && strings.Contains(err.Error(), "already") {
			return nil, fmt.Errorf("%w: line %d: %s: stands there twice", ErrPolicy, row, key)
		} else if key != "" {
			return nil, fmt.Errorf(
				"%w: line %d: %s: the value is not of the kind, or out of the range, that belongs there",
				ErrPolicy,
				row,
				key,
			)
		}
		return nil, fmt.Errorf("%w: line %d: %w", ErrPolicy, row, err)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	var plain map[string]any
	if err := toml.Unmarshal(b, &plain); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPolicy, err)
	}
	if err := f.noEmptyDemand("", plain); err != nil {
		return nil, err
	}
	return f, f.check()
}

// noEmptyDemand refuses what is written and demands nothing: empty texts, such as a template's
// variable that was not set, and negative numbers; and keys that only the letter case makes.
func (f *File) noEmptyDemand(key string, value any) error {
	bad := func(format string, args ...any) error { return f.errorf(key, format, args...) }
	switch v := value.(type) {
	case string:
		if strings.TrimSpace(v) == "" {
			return bad("is empty: leave it out, or say what is demanded")
		}
	case int64:
		if v < 0 {
			return bad("%d: must not be negative", v)
		}
	case map[string]any:
		if len(v) == 0 && strings.HasPrefix(key, "sev-snp.min-tcb") {
			return bad("is empty: leave it out, or say what is demanded")
		}
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if k != strings.ToLower(k) {
				return bad("key %q: must be in lower case", k)
			}
			if err := f.noEmptyDemand(strings.TrimPrefix(key+"."+k, "."), v[k]); err != nil {
				return err
			}
		}
	case []any:
		for _, x := range v {
			if err := f.noEmptyDemand(key, x); err != nil {
				return err
			}
		}
	}
	return nil
}

// EmulatedSuffix ends the names of policies for test platforms.
const EmulatedSuffix = "-emulated"

func (f *File) errorf(key, format string, args ...any) error {
	return fmt.Errorf("%w: %s: %s", ErrPolicy, key, fmt.Sprintf(format, args...))
}

// check refuses a policy that demands too little, or what nothing can meet.
func (f *File) check() error {
	switch emulated := strings.HasSuffix(f.Name, EmulatedSuffix); {
	case f.Schema != Schema:
		return f.errorf("schema", "%q, must be %q", f.Schema, Schema)
	case !exchange.IsName(f.Name):
		return f.errorf("name", "%q: must be up to 63 lower-case letters, digits, dots and dashes", f.Name)
	case emulated && f.Emulated == nil:
		return f.errorf(
			"emulated",
			"is missing: the name ends in %s, which says that the platform is a test",
			EmulatedSuffix,
		)
	case !emulated && f.Emulated != nil:
		return f.errorf("name", "%q: must end in %s, as there is [emulated]", f.Name, EmulatedSuffix)
	case f.Emulated != nil && f.Emulated.Root == "":
		return f.errorf("emulated.root", "is missing")
	case f.SNP == nil && f.TDX == nil && f.SEV == nil && f.SEVES == nil && f.VTPM == nil:
		return fmt.Errorf("%w: no technology has a table: [sev-snp], [tdx], [sev-es], [sev] or [vtpm]", ErrPolicy)
	case f.Guest != nil && f.Guest.Firmware == "":
		return f.errorf("guest.firmware", "is missing: every digest covers it")
	case f.Guest != nil && f.Guest.Kernel == "" && (f.Guest.Initrd != "" || f.Guest.Cmdline != ""):
		return f.errorf("guest.kernel", "is missing: initrd and command line are measured only with it")
	case f.Guest != nil && f.Guest.Initrd == "" && f.Guest.Config != "":
		return f.errorf("guest.initrd", "is missing: the configuration is measured only with it")
	}
	checks := []func() error{
		f.checkVTPM, f.checkSNP, f.checkTDX, f.checkSEV, f.checkReleases, f.checkTolerate, f.checkKEM,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (f *File) checkTolerate() error {
	for key, text := range map[string]string{
		"tolerate.crl-stale": f.Tolerate.CRLStale, "tolerate.collateral-stale": f.Tolerate.CollateralStale,
	} {
		if _, err := days(text); err != nil {
			return f.errorf(key, "%v", err)
		}
	}
	return nil
}

// days reads a time such as "30d" or "12h"; "" is none.
func days(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	if n, ok := strings.CutSuffix(text, "d"); ok {
		d, err := strconv.ParseUint(n, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q: must be a number of days, such as 30d", text)
		}
		return bounded(text, time.Duration(d)*24*time.Hour)
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q: must be a time such as 30d or 12h", text)
	}
	return bounded(text, d)
}

// maxStale is how long after its date something may be used at the most: for that long a vendor
// could have said anything.
const maxStale = 366 * 24 * time.Hour

func bounded(text string, d time.Duration) (time.Duration, error) {
	if d > maxStale {
		return 0, fmt.Errorf("%q: at most 366d", text)
	}
	return d, nil
}

// unhex reads bytes in hex of a length; nil for "".
func (f *File) unhex(key, text string, size int) ([]byte, error) {
	if text == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != size {
		return nil, f.errorf(key, "%q: must be %d hex digits", text, 2*size)
	}
	return b, nil
}

// hexField is a key with bytes in hex.
type hexField struct {
	key, text string
	size      int
	to        *[]byte
}

// unhexEach reads the keys of a table.
func (f *File) unhexEach(table string, fields []hexField) (err error) {
	for _, x := range fields {
		if *x.to, err = f.unhex(table+"."+x.key, x.text, x.size); err != nil {
			return err
		}
	}
	return nil
}

// unhexAll reads a list of such bytes.
func (f *File) unhexAll(key string, list []string, size int) (out [][]byte, err error) {
	for _, text := range list {
		b, err := f.unhex(key, text, size)
		if err != nil {
			return nil, err
		}
		if b == nil {
			return nil, f.errorf(key, "an entry is empty")
		}
		out = append(out, b)
	}
	return out, nil
}

// chips reads a list of chips, of one of some lengths in bytes; any must be written.
func (f *File) chips(table string, value any, sizes ...int) (list [][]byte, all bool, err error) {
	key := table + ".chips"
	switch v := value.(type) {
	case nil:
		return nil, false, f.errorf(key, `is missing: name the chips, or write chips = "any": the key of any one chip,`+
			` anywhere, can forge every report`)
	case string:
		if v == "any" {
			return nil, true, nil
		}
	case []any:
		for _, x := range v {
			text, ok := x.(string)
			b, err := hex.DecodeString(text)
			fits := false
			for _, n := range sizes {
				fits = fits || len(b) == n
			}
			if text == "any" {
				return nil, false, f.errorf(key, `to accept any, write chips = "any"`)
			}
			if !ok || err != nil || !fits {
				return nil, false, f.errorf(key, "%v: must be hex of %s bytes", x, either(sizes))
			}
			list = append(list, b)
		}
		if len(list) > 0 {
			return list, false, nil
		}
		return nil, false, f.errorf(key, "is empty: no chip would be accepted")
	}
	return nil, false, f.errorf(key, `%v: must be a list, or "any"`, value)
}

// either lists sizes.
func either(sizes []int) string {
	var list []string
	for _, n := range sizes {
		list = append(list, strconv.Itoa(n))
	}
	return strings.Join(list, " or ")
}
