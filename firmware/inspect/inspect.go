// Package inspect tells what a firmware image contains, and what of it each
// technology measures: in words, as a map to look at, and as the difference
// between two images.
//
// Sources: as of packages ovmf, launch and tdx, on which it rests.
package inspect

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"

	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// Cover is how a measurement covers a region.
type Cover string

// Covers.
const (
	Contents Cover = "contents" // its bytes are measured
	Presence Cover = "presence" // that it is there, at this address, and of what type
	Nothing  Cover = "nothing"
)

// Region is a range of guest-physical addresses.
type Region struct {
	What  string           `json:"what"`
	GPA   uint64           `json:"gpa"`
	Size  uint64           `json:"size"`
	Image bool             `json:"image"` // part of the image, below 4 GiB
	Cover map[string]Cover `json:"covered"`
}

// Technologies returns the technologies' names, in the order in which they are shown.
func Technologies() []string { return []string{"sev", "sev-es", "sev-snp", "tdx"} }

// Entry is one entry of the GUIDed table.
type Entry struct {
	Name string `json:"name"`
	GUID string `json:"guid"`
	Data string `json:"data"` // hexadecimal
	Text string `json:"text"` // the data in words
}

// Report is what an image contains.
type Report struct {
	Schema      string            `json:"schema"`
	Size        int               `json:"size"`
	SHA256      string            `json:"sha256"`
	Base        uint64            `json:"base"` // where it is loaded
	ResetVector string            `json:"reset-vector"`
	Version     string            `json:"version"` // of the build, as it measures it; "" if it has none
	SecureBoot  *SecureBoot       `json:"secure-boot,omitempty"`
	Variables   []Variable        `json:"variables"`
	Modules     []Module          `json:"modules"`
	Entries     []Entry           `json:"guided-table"`
	Regions     []Region          `json:"regions"`
	Digests     map[string]string `json:"digests"` // of the firmware alone
	Notes       []string          `json:"notes"`

	pcr0 string // a hash of what PCR 0 covers; "" for firmware that measures nothing
}

// Schema names the report's form.
const Schema = "latchkey.firmware/1"

// Image inspects an image. Metadata that is malformed is an error.
func Image(img *ovmf.Image) (*Report, error) {
	sum := sha256.Sum256(img.Bytes)
	r := &Report{
		Schema:      Schema,
		Size:        len(img.Bytes),
		SHA256:      hex.EncodeToString(sum[:]),
		Base:        1<<32 - uint64(len(img.Bytes)),
		ResetVector: hex.EncodeToString(img.ResetVector()),
		Entries:     []Entry{},
		Variables:   []Variable{},
		Modules:     []Module{},
		Digests:     map[string]string{"sev": hex.EncodeToString(sum[:])},
		Notes:       []string{},
	}
	for _, e := range img.Entries {
		r.Entries = append(r.Entries, Entry{e.Name(), e.GUID.String(), hex.EncodeToString(e.Data), e.Text()})
	}
	layout, err := launch.LayoutOf(img)
	if err != nil {
		return nil, err
	}
	sections, err := img.TDXMetadata()
	splitTDX := err != nil // a code image without its variables
	r.volumes(img, sections)
	r.modules(img)
	r.memory(img, layout, sections)
	r.digests(img, layout, splitTDX)
	slices.SortStableFunc(r.Regions, func(a, b Region) int {
		switch {
		case a.GPA < b.GPA:
			return -1
		case a.GPA > b.GPA:
			return 1
		}
		return 0
	})
	return r, nil
}

// volumes adds the image's parts: its volumes, and what lies between them.
func (r *Report) volumes(img *ovmf.Image, sections []ovmf.TDXSection) {
	next := 0
	add := func(what string, from, to int) {
		if from >= to {
			return
		}
		inTDX := Nothing
		for _, s := range sections {
			if s.FileSize > 0 && int(s.FileOffset) < to && int(s.FileOffset+s.FileSize) > from {
				if inTDX = Presence; s.Attributes&1 != 0 {
					inTDX = Contents
				}
			}
		}
		r.Regions = append(
			r.Regions,
			Region{
				what,
				r.Base + uint64(from),
				uint64(to - from),
				true,
				map[string]Cover{"sev": Contents, "sev-es": Contents, "sev-snp": Contents, "tdx": inTDX},
			},
		)
	}
	for _, v := range img.Volumes() {
		add("between volumes", next, v.Offset)
		add("volume "+v.Kind(), v.Offset, v.Offset+v.Size)
		next = v.Offset + v.Size
	}
	add("behind the last volume", next, len(img.Bytes))
}

// memory adds the areas outside the image that metadata names.
func (r *Report) memory(img *ovmf.Image, l *launch.Layout, sections []ovmf.TDXSection) {
	none := func() map[string]Cover {
		return map[string]Cover{"sev": Nothing, "sev-es": Nothing, "sev-snp": Nothing, "tdx": Nothing}
	}
	for _, s := range l.Sections {
		if s.Size == 0 {
			continue
		}
		cover := none()
		if cover["sev-snp"] = Presence; s.Type == ovmf.SectionKernelHashes {
			cover["sev-snp"] = Contents
		}
		r.Regions = append(r.Regions,
			Region{"SNP section: " + s.Type.String(), uint64(s.GPA), uint64(s.Size), false, cover})
	}
	if a := l.HashArea; a.Holds() {
		cover := none()
		cover["sev"], cover["sev-es"] = Contents, Contents
		r.Regions = append(r.Regions, Region{"kernel hash area", uint64(a.Base), uint64(a.Size), false, cover})
	}
	if a, ok, err := img.SecretArea(); ok && err == nil && a.Size > 0 {
		r.Regions = append(r.Regions, Region{"launch secret area", uint64(a.Base), uint64(a.Size), false, none()})
	}
	for _, s := range sections {
		if s.FileSize > 0 || s.Size == 0 {
			continue // shown with the image
		}
		cover := none()
		if cover["tdx"] = Presence; s.Attributes&1 != 0 {
			cover["tdx"] = Contents
		}
		r.Regions = append(r.Regions, Region{"TDX section: " + s.TypeName(), s.GPA, s.Size, false, cover})
	}
}

func (r *Report) digests(img *ovmf.Image, l *launch.Layout, splitTDX bool) {
	note := func(format string, a ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, a...)) }
	if !l.HashArea.Holds() {
		note("no area for kernel hashes: a kernel cannot be measured with it under SEV and SEV-ES")
	}
	if l.ResetEIP == 0 {
		note("no SEV-ES reset block: SEV-ES and SEV-SNP guests have one CPU at most")
	}
	if len(l.Sections) == 0 {
		note("no SEV metadata: it cannot run under SEV-SNP")
	} else if len(img.Bytes)%4096 == 0 {
		r.Digests["sev-snp-pages"] = launch.PagesDigest(img.Bytes).String()
	}
	switch d, err := tdx.Predict(img, tdx.PageByPage); {
	case err == nil:
		r.Digests["tdx"] = hex.EncodeToString(d[:])
	case splitTDX:
		note("its TDX metadata points outside: a code image whose variables are a file of their own, " +
			"for TDX the two must be one")
	default:
		note("no TDX metadata: it cannot run under TDX")
	}
	for _, v := range img.Volumes() {
		if v.Kind() == "variables" {
			note("a volume for variables: SEV measures it as it lies in the image; TDX only adds it, unmeasured")
		}
	}
}
