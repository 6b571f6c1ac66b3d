package launcher

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
)

// options is a command line taken apart again, so that checks see what QEMU would
// and not what the builder meant.
type options struct {
	values map[string][]string
	flags  map[string]bool
}

// flagOptions take no value.
var flagOptions = []string{"-nodefaults", "-no-user-config", "-S", "-no-reboot"}

func parseOptions(argv []string) *options {
	o := &options{values: map[string][]string{}, flags: map[string]bool{}}
	for i := 1; i < len(argv); i++ {
		if slices.Contains(flagOptions, argv[i]) || i+1 == len(argv) {
			o.flags[argv[i]] = true
			continue
		}
		o.values[argv[i]] = append(o.values[argv[i]], argv[i+1])
		i++
	}
	return o
}

// one returns an option that stands there once.
func (o *options) one(name string) string {
	if v := o.values[name]; len(v) == 1 {
		return v[0]
	}
	return ""
}

// machine returns a property of the machine.
func (o *options) machine(property string) string { return properties(o.one("-machine"))[property] }

// device is a device or an object: its type and properties.
type device struct {
	kind  string
	props map[string]string
}

// objects are what -object makes.
func (o *options) objects() []device {
	var all []device
	for _, v := range o.values["-object"] {
		p := properties(v)
		all = append(all, device{p["qom-type"], p})
	}
	return all
}

// confidential is the object that protects the guest.
func (o *options) confidential() (device, bool) {
	id := o.machine("confidential-guest-support")
	for _, d := range o.objects() {
		if id != "" && d.props["id"] == id {
			return d, true
		}
	}
	return device{}, false
}

// properties reads either form of an option's value; its first bare word is the
// driver or the type.
func properties(value string) map[string]string {
	if strings.HasPrefix(value, "{") {
		var m map[string]any
		if json.Unmarshal([]byte(value), &m) != nil {
			return nil
		}
		return texts(m)
	}
	p := map[string]string{}
	const comma = "\x00" // a doubled comma is one that ends nothing
	for i, part := range strings.Split(strings.ReplaceAll(value, ",,", comma), ",") {
		part = strings.ReplaceAll(part, comma, ",")
		key, v, ok := strings.Cut(part, "=")
		if !ok && i == 0 {
			p["driver"], p["qom-type"] = part, part
			continue
		}
		p[key] = v
	}
	return p
}

// texts writes a JSON object's values as the other form has them.
func texts(m map[string]any) map[string]string {
	p := map[string]string{}
	for k, v := range m {
		switch v := v.(type) {
		case bool:
			p[k] = map[bool]string{true: "on", false: "off"}[v]
		case float64:
			p[k] = fmt.Sprintf("%.0f", v)
		default:
			p[k] = fmt.Sprint(v)
		}
	}
	return p
}

// firmwareFacts is what a firmware image can do for a launch.
type firmwareFacts struct {
	igvm, hashArea, secretArea, reset, snp, tdx bool
}

// readFirmwareFacts looks into the plan's firmware; nil if there is none, or it
// cannot be read: then the files' own check says so.
func readFirmwareFacts(p *Plan) *firmwareFacts {
	if p.tech.build == nil {
		return nil
	}
	return readFirmware(p.inputs().Firmware)
}

func (f *firmwareFacts) read(b []byte) error {
	if f.igvm = igvm.Is(b); f.igvm {
		return nil
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		return nil // it offers nothing
	}
	if a, ok, err := img.HashArea(); err == nil && ok {
		f.hashArea = a.Size > 0
	}
	if a, ok, err := img.SecretArea(); err == nil && ok {
		f.secretArea = a.Size > 0
	}
	_, f.reset, _ = img.ResetEIP()
	if s, err := img.SEVMetadata(); err == nil {
		f.snp = len(s) > 0
	}
	if s, err := img.TDXMetadata(); err == nil {
		f.tdx = len(s) > 0
	}
	return nil
}

// readFirmware looks into an image; nil if it cannot be read.
func readFirmware(image string) *firmwareFacts {
	if info, err := os.Stat(image); err != nil || !info.Mode().IsRegular() {
		return nil // nor could it be waited for
	}
	f := &firmwareFacts{}
	if ovmf.WithFile(image, f.read) != nil {
		return nil
	}
	return f
}

// lacks says what the technology needs, with kernel hashes or without, and the
// firmware does not have; "" for nothing.
func (f *firmwareFacts) lacks(t technology, kernelHashes bool) string {
	switch {
	case f.igvm:
		return ""
	case t.name == TechnologySEVES && !f.reset:
		return "it has no SEV-ES reset block"
	case t.name == TechnologySNP && !f.snp:
		return "it has no SEV metadata"
	case t.name == TechnologyTDX && !f.tdx:
		return "it has no TDX metadata"
	case kernelHashes && !f.hashArea:
		return "it has no area for kernel hashes"
	}
	return ""
}
