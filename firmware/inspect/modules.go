package inspect

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/ffs"
	"github.com/vmlatch/vmlatch/firmware/guid"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

// TPM is the name under which modules report whether a TPM's registers cover them (PCR 0).
const TPM = "tpm"

// Module is a file in a firmware volume, or in one that is packed inside another.
type Module struct {
	Volume   string           `json:"volume"` // those that lead to it, outermost first
	GUID     string           `json:"guid"`
	Type     string           `json:"type"`
	Name     string           `json:"name"`
	Version  string           `json:"version,omitempty"`
	Size     int              `json:"size"`
	SHA256   string           `json:"sha256"` // of its file
	Sections []string         `json:"sections"`
	Cover    map[string]Cover `json:"covered"`
}

// Label is the module's name, or its GUID.
func (m *Module) Label() string {
	if m.Name != "" {
		return m.Name
	}
	return m.GUID
}

// Variable is a UEFI variable in the image's own store.
type Variable struct {
	Name string   `json:"name"`
	GUID string   `json:"guid"`
	Size int      `json:"size"`
	Keys []string `json:"keys,omitempty"` // of Secure Boot: whose they are
}

// SecureBoot is what an image has of Secure Boot.
type SecureBoot struct {
	Code bool `json:"code"` // the modules that check signatures
	On   bool `json:"on"`   // a platform key is enrolled in the image's own variables
}

// modules adds what the volumes hold.
func (r *Report) modules(img *ovmf.Image) {
	list := ffs.Read(img.Bytes)
	for path, f := range ffs.Files(list) {
		if f.Type == ffs.FilePad {
			continue
		}
		var names []string
		for _, v := range path {
			names = append(names, volumeName(v))
		}
		inside := path[len(path)-1]
		sum := sha256.Sum256(inside.Bytes[f.Offset : f.Offset+f.Size])
		m := Module{
			Volume: strings.Join(names, " > "), GUID: f.GUID.String(), Type: f.Type.String(), Name: f.Name,
			Version: f.Version, Size: f.Size, SHA256: hex.EncodeToString(sum[:]), Sections: sectionWords(f.Sections),
			Cover: maps.Clone(r.coverOf(path[0])),
		}
		if m.Cover[TPM] = Nothing; len(path) > 1 {
			m.Cover[TPM] = Contents
		}
		r.Modules = append(r.Modules, m)
	}
	for _, v := range ffs.All(list) {
		if v.Damage != nil {
			r.Notes = append(r.Notes, fmt.Sprintf("volume %s cannot be read whole: %v", volumeName(v), v.Damage))
		}
	}
	switch f, err := predict.FirmwareIn(img.Bytes, list); {
	case err == nil:
		r.Version, r.SecureBoot, r.pcr0 = f.Version, &SecureBoot{Code: f.SecureBoot}, measuredByTPM(f)
	default:
		r.Notes = append(r.Notes, err.Error())
		for i := range r.Modules {
			r.Modules[i].Cover[TPM] = Nothing
		}
	}
	r.variables(img)
}

// measuredByTPM is a hash of what PCR 0 covers: version and volumes.
func measuredByTPM(f *predict.Firmware) string {
	h := sha256.New()
	for _, v := range append([][]byte{[]byte(f.Version)}, f.Volumes...) {
		sum := sha256.Sum256(v)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil))
}

func (r *Report) coverOf(v *ffs.Volume) map[string]Cover {
	for _, region := range r.Regions {
		if region.Image && region.GPA == r.Base+uint64(v.Offset) {
			return region.Cover
		}
	}
	return map[string]Cover{}
}

func volumeName(v *ffs.Volume) string {
	if v.Name != (guid.GUID{}) {
		return v.Name.String()
	}
	return fmt.Sprintf("%s at %#x", v.Kind(), v.Offset)
}

// sectionWords name sections, those that are packed by what packs them.
func sectionWords(list []ffs.Section) []string {
	out := []string{}
	for _, s := range list {
		word := s.Kind.String()
		if s.Packing != "" {
			word = "packed by " + s.Packing
		}
		if s.Opaque != "" {
			word += " (" + s.Opaque + ")"
		}
		out = append(out, word)
	}
	return out
}

// variables adds those of the image's own store.
func (r *Report) variables(img *ovmf.Image) {
	store, err := uefivar.Read(img.Bytes)
	if err != nil {
		return
	}
	for _, v := range store {
		x := Variable{Name: v.Name, GUID: v.GUID.String(), Size: len(v.Data)}
		switch v.Name {
		case "PK", "KEK", "db", "dbx":
			x.Keys = keys(v.Data)
		}
		r.Variables = append(r.Variables, x)
	}
	if r.SecureBoot != nil {
		r.SecureBoot.On = r.SecureBoot.Code && store.SecureBoot()
	}
}

// keys say whose certificates a database holds, and how many hashes.
func keys(data []byte) (list []string) {
	signatures, err := uefivar.Signatures(data)
	if err != nil {
		return []string{err.Error()}
	}
	hashes := 0
	for _, s := range signatures {
		c, err := x509.ParseCertificate(s.Data)
		switch {
		case s.Kind != uefivar.GUIDX509:
			hashes++
		case err != nil:
			list = append(list, "a certificate that cannot be read")
		default:
			list = append(list, c.Subject.String())
		}
	}
	if hashes > 0 {
		list = append(list, fmt.Sprintf("hashes of images: %d", hashes))
	}
	return list
}
