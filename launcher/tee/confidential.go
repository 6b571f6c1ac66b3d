package tee

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// Only is a table such as [confidential.NAME]: values that count when the technology
// of the name is chosen.
type Only struct {
	Policy []string `toml:"policy"`
	CPU    string   `toml:"cpu"`
	Until  string   `toml:"until"`
}

func (o *Only) empty() bool { return len(o.Policy) == 0 && o.CPU == "" && o.Until == "" }

// key is a key of [confidential] that only some technologies have.
type key struct {
	name    string
	set     bool
	file    *string // where its value is a path
	content bool    // of a file that is read, so it may be a credential
}

func policyKey(c *Confidential) key { return key{name: "policy", set: len(c.Policy) > 0} }

func textKey(name, value string) key { return key{name: name, set: value != ""} }

// pathKey is a key with a path, for others to open.
func pathKey(name string, value *string) key { return key{name: name, set: *value != "", file: value} }

// fileKey is a key with a file that is read.
func fileKey(name string, value *string) key {
	k := pathKey(name, value)
	k.content = true
	return k
}

// files lists the files of all technologies' keys.
func (c *Confidential) files() (keys []key) {
	for _, t := range all() {
		for _, k := range t.keys(c) {
			if k.file != nil && !slices.ContainsFunc(keys, func(o key) bool { return o.name == k.name }) {
				keys = append(keys, k)
			}
		}
	}
	return keys
}

// foreign refuses keys that the guest's technology gives no meaning.
func (g *Guest) foreign() error {
	c := &g.Confidential
	var order []string
	of := map[string][]string{}
	for _, t := range all() {
		for _, k := range t.keys(c) {
			if !k.set {
				continue
			}
			if of[k.name] == nil {
				order = append(order, k.name)
			}
			of[k.name] = append(of[k.name], t.traits().Name)
		}
	}
	name := g.Traits().Name
	for _, key := range order {
		mine := func(n string) bool { return n == name || len(g.asked) > 1 && slices.Contains(g.asked, n) }
		if !slices.ContainsFunc(of[key], mine) {
			return g.File.Errorf("confidential."+key, "not valid for technology %q (only %s)", name,
				strings.Join(of[key], ", "))
		}
	}
	if c.KernelHashes != nil && *c.KernelHashes && !g.Traits().KernelHashes {
		return g.File.Errorf("confidential.kernel-hashes", "technology %q has no such hashes", name)
	}
	return nil
}

// Any stands for every technology that can prove what was loaded, the strongest first.
const Any = "any-confidential"

func strongestFirst() []string {
	return []string{snp{}.traits().Name, tdx{}.traits().Name, sevs{es: true}.traits().Name, sevs{}.traits().Name}
}

// readTechnologies reads a name, a list of names, or any-confidential.
func readTechnologies(f *spec.File, value any) ([]string, error) {
	const key = "confidential.technology"
	names, ok := stringsOf(value)
	if !ok {
		return nil, f.Errorf(key, "%v: must be a name or a list of names", value)
	}
	if len(names) == 0 {
		return nil, f.Errorf(key, "is an empty list")
	}
	if len(names) == 1 && names[0] == Any {
		if _, isList := value.([]any); !isList {
			return strongestFirst(), nil
		}
	}
	none := none{}.traits().Name
	for i, n := range names {
		if len(names) > 1 && (n == none || n == Any) {
			return nil, f.Errorf(key,
				"%q stands alone: a guest that may run without protection, or under any, needs no list", n)
		}
		if _, ok := byName(n); !ok {
			known := append(Names(), Any)
			e := f.Errorf(key, "%q: must be one of %s, or a list of them", n, strings.Join(known, ", "))
			e.Fix = nearest.Hint(n, known)
			return nil, e
		}
		if slices.Contains(names[:i], n) {
			return nil, f.Errorf(key, "%q is listed twice", n)
		}
	}
	return names, nil
}

// stringsOf is a value that is a string, or a list of strings.
func stringsOf(value any) (list []string, ok bool) {
	switch v := value.(type) {
	case string:
		return []string{v}, true
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			list = append(list, s)
		}
		return list, true
	}
	return nil, false
}

// confidential checks what all confidential guests share.
func (g *Guest) confidential() error {
	if err := g.foreign(); err != nil {
		return err
	}
	switch t := g.Traits(); {
	case g.Accel == "tcg":
		return g.notTCG()
	case g.Firmware.Image == "" && len(g.Firmware.Features) == 0:
		return g.File.Errorf("firmware", "a confidential guest needs firmware that knows %s:"+
			" give image, or features = [%q]", t.Name, t.Feature)
	}
	return nil
}

func (g *Guest) notTCG() error {
	return g.File.Errorf(
		"accel",
		"tcg cannot encrypt memory; to try the launch without hardware, start with --emulate",
	)
}

// latchNothing checks latch.until of a technology for which no owner is asked.
func (g *Guest) latchNothing(why string) error {
	switch l, name := g.Latch, g.Traits().Name; {
	case l.Until == plan.UntilNothing && len(l.Owner) == 0:
		return nil
	case len(l.Owner) > 0:
		return g.File.Errorf("latch.owner", "not used with %s", name)
	case l.Until == "" || l.Until == plan.UntilSecret:
		return g.File.Errorf("latch.until", `%s; write until = "nothing" to accept that`, why)
	}
	return g.File.Errorf("latch.until", `%q: must be "nothing"`, g.Latch.Until)
}

// FromBroker reports whether the session of this launch comes from the owner's broker.
func (g *Guest) FromBroker() bool {
	return g.Broker.Connect != "" && g.traits.Measurable && g.Confidential.Session == "" &&
		g.Latch.Until == plan.UntilSecret
}

// Session checks that the policy of a session from the broker is the guest's.
func (g *Guest) Session(policy uint32) error {
	t, ok := g.tech.(sevs)
	if !ok {
		return errors.New("not a guest of SEV or SEV-ES")
	}
	own, err := t.policy(g.Confidential.Policy)
	if err != nil || sev.Policy(policy) == own {
		return err
	}
	e := g.File.Errorf("confidential.policy", "%v, and the broker's is %v", own, sev.Policy(policy))
	e.Fix = fmt.Sprintf(`write policy = ["%s"]`, strings.Join(sev.Policy(policy).Words(), `", "`))
	return e
}

// noBroker refuses a broker for a guest that has nothing to show it. One whose host is trusted can
// show its TPM.
func (g *Guest) noBroker() error {
	if g.Broker.Connect == "" || g.TPM.On() {
		return nil
	}
	e := g.File.Errorf("broker", "%s shows nothing that a broker could judge", g.traits.Name)
	e.Fix = "a guest whose host is trusted can prove itself by a TPM: [tpm], and latch.trust=host in cmdline"
	return e
}

// latchEvidence checks latch.until of a guest that proves itself to a broker while it runs. It
// reports whether that is what the latch waits for.
func (g *Guest) latchEvidence() (done bool, err error) {
	if g.Latch.Until == "" && g.Broker.Connect != "" {
		g.Latch.Until = plan.UntilEvidence
	}
	switch {
	case g.Latch.Until != plan.UntilEvidence:
		return false, nil
	case g.Broker.Connect == "":
		return true, g.File.Errorf(
			"latch.until",
			"evidence: there is no broker that could judge it: [broker] connect",
		)
	case g.Kernel.Image == "":
		return true, g.File.Errorf(
			"latch.until",
			"evidence: without a kernel in the spec the broker's key is not known here;"+
				` write until = "nothing": the guest asks its broker all the same`,
		)
	case len(g.Latch.Owner) > 0:
		return true, g.File.Errorf("latch.owner", "not used with a broker")
	}
	return true, nil
}

// conflict is an error about a guest that does not do what a disk image demands; it
// names both sides.
func (g *Guest) conflict(key, have string, d *spec.Demands, demand, want string) error {
	e := g.File.Errorf(key, "%s, but the image demands %s = %s (%s)", have, demand, want, d.File.Path)
	e.Fix = "change the spec, or the image's demands if they are yours"
	return e
}
