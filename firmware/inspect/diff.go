package inspect

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

// Difference is what two images do not share.
type Difference struct {
	Schema  string          `json:"schema"`
	Same    bool            `json:"same"`
	Changes []string        `json:"changes"`
	Modules []ModuleChange  `json:"modules"`
	Digests map[string]bool `json:"digest-changes"` // by technology: whether its digest changes
}

// ModuleChange is a module that two images do not share.
type ModuleChange struct {
	Change string `json:"change"`
	Name   string `json:"name"`
	GUID   string `json:"guid"`
	Type   string `json:"type"`
	Volume string `json:"volume"`
}

// Diff compares two images and says which digests change.
func Diff(a, b *ovmf.Image) (*Difference, error) {
	ra, err := Image(a)
	if err != nil {
		return nil, err
	}
	rb, err := Image(b)
	if err != nil {
		return nil, err
	}
	d := &Difference{
		Schema:  "latchkey.firmware-diff/1",
		Same:    bytes.Equal(a.Bytes, b.Bytes),
		Changes: []string{},
		Modules: []ModuleChange{},
		Digests: map[string]bool{},
	}
	say := func(format string, args ...any) { d.Changes = append(d.Changes, fmt.Sprintf(format, args...)) }
	if ra.Size != rb.Size {
		say("size: %d, then %d bytes", ra.Size, rb.Size)
	}
	for _, e := range ra.Entries {
		i := slices.IndexFunc(rb.Entries, func(o Entry) bool { return o.GUID == e.GUID })
		switch {
		case i < 0:
			say("%s: gone", e.Name)
		case rb.Entries[i].Data != e.Data:
			say("%s: %s, then %s", e.Name, e.Text, rb.Entries[i].Text)
		}
	}
	for _, e := range rb.Entries {
		if !slices.ContainsFunc(ra.Entries, func(o Entry) bool { return o.GUID == e.GUID }) {
			say("%s: new", e.Name)
		}
	}
	key := func(r Region) string { return fmt.Sprintf("%s at %#x, %d bytes", r.What, r.GPA, r.Size) }
	for _, r := range ra.Regions {
		if !slices.ContainsFunc(rb.Regions, func(o Region) bool { return key(o) == key(r) }) {
			say("only in the first: %s", key(r))
		} else if r.Image && !bytes.Equal(part(a, ra, r), part(b, rb, r)) {
			say("contents differ: %s", key(r))
		}
	}
	for _, r := range rb.Regions {
		if !slices.ContainsFunc(ra.Regions, func(o Region) bool { return key(o) == key(r) }) {
			say("only in the second: %s", key(r))
		}
	}
	d.modules(ra, rb)
	for _, n := range rb.Notes { // such as volumes that cannot be read
		if !slices.Contains(ra.Notes, n) {
			say("of the second: %s", n)
		}
	}
	d.Digests[TPM] = ra.pcr0 != rb.pcr0
	reset := func(r *Report) string {
		for _, e := range r.Entries {
			if e.Name == "SEV-ES reset block" {
				return e.Data
			}
		}
		return ""
	}
	d.Digests["sev"] = !d.Same
	d.Digests["sev-es"] = !d.Same || reset(ra) != reset(rb)
	d.Digests["sev-snp"] = !d.Same // pages and metadata both lie in the image
	d.Digests["tdx"] = ra.Digests["tdx"] != rb.Digests["tdx"]
	return d, nil
}

// modules says which modules differ, with what covers them.
func (d *Difference) modules(a, b *Report) {
	find := func(list []Module, m *Module) int {
		return slices.IndexFunc(list, func(o Module) bool { return o.GUID == m.GUID && o.Volume == m.Volume })
	}
	if a.Version != b.Version {
		d.Changes = append(d.Changes, fmt.Sprintf("version: %q, then %q", a.Version, b.Version))
	}
	change := func(kind string, m *Module) {
		d.Modules = append(d.Modules, ModuleChange{kind, m.Label(), m.GUID, m.Type, m.Volume})
		d.Changes = append(d.Changes, fmt.Sprintf("%s: module %s (%s, %s)", kind, m.Label(), m.Type, m.GUID))
	}
	for i := range a.Modules {
		m := &a.Modules[i]
		switch j := find(b.Modules, m); {
		case j < 0:
			change("only in the first", m)
		case b.Modules[j].SHA256 != m.SHA256 && m.Type != ffs.FileVolume.String():
			change("contents differ", m)
		}
	}
	for i := range b.Modules {
		if m := &b.Modules[i]; find(a.Modules, m) < 0 {
			change("only in the second", m)
		}
	}
}

func part(img *ovmf.Image, r *Report, region Region) []byte {
	off := int(region.GPA - r.Base)
	return img.Bytes[off : off+int(region.Size)]
}
