package launcher

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// TDAttributes are the attributes of a trust domain (Intel TDX module ABI,
// ATTRIBUTES).
type TDAttributes uint64

// Attributes that QEMU lets a guest have (QEMU, docs/system/i386/tdx.rst).
const (
	TDDebug         TDAttributes = 1 << 0
	TDSEPTVEDisable TDAttributes = 1 << 28 // no exceptions that a host could force by taking pages away
	TDPKS           TDAttributes = 1 << 30
	TDPerfmon       TDAttributes = 1 << 63
)

var tdAttributeNames = []struct {
	bit  TDAttributes
	name string
}{{TDDebug, "debug"}, {TDSEPTVEDisable, "sept-ve-disable"}, {TDPKS, "pks"}, {TDPerfmon, "perfmon"}}

func (a TDAttributes) String() string {
	var words []string
	for _, n := range tdAttributeNames {
		if a&n.bit != 0 {
			words = append(words, n.name)
		}
	}
	return fmt.Sprintf("%#x (%s)", uint64(a), strings.Join(words, ","))
}

// TDAttributes are the attributes of a TDX guest: the policy's words or number.
func (s *Spec) TDAttributes() (TDAttributes, error) {
	if len(s.Confidential.Policy) == 0 {
		return TDSEPTVEDisable, nil
	}
	if n, err := strconv.ParseUint(s.Confidential.Policy[0], 0, 64); err == nil && len(s.Confidential.Policy) == 1 {
		return TDAttributes(n), nil
	}
	var a TDAttributes
	var names []string
	for _, n := range tdAttributeNames {
		names = append(names, n.name)
	}
	for _, w := range s.Confidential.Policy {
		i := slices.Index(names, w)
		if i < 0 {
			return 0, fmt.Errorf("attributes: %q is none of %s, nor a number", w, strings.Join(names, ", "))
		}
		a |= tdAttributeNames[i].bit
	}
	return a, nil
}

func validateTDX(s *Spec) error {
	if _, err := s.TDAttributes(); err != nil {
		return s.errorf("confidential.policy", "%v", err)
	}
	for key, text := range s.tdxIDs() {
		if _, err := hexBytes(text, 48); err != nil {
			return s.errorf("confidential."+key, "%v", err)
		}
	}
	if err := validateConfidential(s); err != nil {
		return err
	}
	return s.latchOnly("TDX shows no measurement while the guest is paused: only quotes from inside it tell")
}

// tdxIDs are the values that an owner binds to a launch and finds in its quotes.
func (s *Spec) tdxIDs() map[string]string {
	c := &s.Confidential
	return map[string]string{"mrconfigid": c.MRConfigID, "mrowner": c.MROwner, "mrownerconfig": c.MROwnerConfig}
}

// tdxObject adds the tdx-guest object (QEMU, qapi/qom.json, TdxGuestProperties).
func tdxObject(b *builder) error {
	attributes, err := b.spec.TDAttributes()
	if err != nil {
		return err
	}
	props := map[string]any{"attributes": uint64(attributes)}
	for key, text := range b.spec.tdxIDs() {
		raw, err := hexBytes(text, 48)
		if err != nil {
			return err
		}
		if raw != nil {
			props[key] = base64.StdEncoding.EncodeToString(raw)
		}
	}
	if path := b.spec.Confidential.QuoteSocket; path != "" {
		props["quote-generation-socket"] = map[string]any{"type": "unix", "path": path}
	}
	// The guest sees the host's timers but this one, which firmware would list in
	// tables that are measured.
	if b.facts.Info.HasMachine("hpet") {
		b.machine.SetBool("hpet", false)
	}
	b.choose("attributes", attributes.String(), b.spec.From("confidential.policy"))
	return b.addObject("tdx-guest", props)
}
