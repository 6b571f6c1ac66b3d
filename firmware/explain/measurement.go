package explain

import (
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/session"
)

// Measurement is an observed SEV or SEV-ES launch measurement: a MAC under the
// owner's key over the digest, the policy, the firmware's version and a nonce.
type Measurement struct {
	Keys   *session.Keys
	Seen   sev.Measurement
	Build  sev.Build  // as the host says
	Policy sev.Policy // of the owner's session
}

// Matches checks the MAC.
func (m *Measurement) Matches(digest []byte) bool {
	return m.Keys.Verifies(m.Seen, m.Build, m.Policy, [32]byte(digest))
}

// circumstance is one way in which a MAC may have come about otherwise.
type circumstance struct {
	change Change
	edit   func(*Measurement)
}

// Under tries other policies, versions, builds and nonces.
func (m *Measurement) Under(digest []byte, most int) (changes []Change, n int) {
	dims := [][]circumstance{m.policies(), m.versions(), m.builds(), m.nonces()}
	for _, dim := range dims {
		for _, c := range dim {
			other := *m
			c.edit(&other)
			if n++; most == 1 && other.Matches(digest) {
				return []Change{c.change}, n
			}
		}
	}
	if most < 2 {
		return nil, n
	}
	n = 0
	for i, first := range dims {
		for _, a := range first {
			one := *m
			a.edit(&one)
			for _, second := range dims[i+1:] {
				for _, b := range second {
					two := one
					b.edit(&two)
					if n++; two.Matches(digest) {
						return []Change{a.change, b.change}, n
					}
				}
			}
		}
	}
	return nil, n
}

func (m *Measurement) policies() []circumstance {
	var list []circumstance
	seen := map[sev.Policy]bool{m.Policy: true}
	add := func(p sev.Policy) {
		if seen[p] {
			return
		}
		seen[p] = true
		say := fmt.Sprintf("the policy is %v instead of your session's %v", p, m.Policy)
		list = append(list,
			circumstance{Change{"policy", m.Policy.String(), p.String(), say}, func(o *Measurement) { o.Policy = p }})
	}
	for bit := range 32 {
		add(m.Policy ^ 1<<bit)
	}
	for low := range sev.Policy(64) {
		add(m.Policy&^63 | low)
	}
	add(m.Policy & 0xffff)
	return list
}

func (m *Measurement) versions() []circumstance {
	var list []circumstance
	for major := range uint8(3) {
		for minor := range uint8(128) {
			if major == m.Build.Major && minor == m.Build.Minor {
				continue
			}
			from, to := fmt.Sprintf("%d.%d", m.Build.Major, m.Build.Minor), fmt.Sprintf("%d.%d", major, minor)
			say := fmt.Sprintf("the platform's firmware has API version %s, and not %s as the host says", to, from)
			list = append(
				list,
				circumstance{
					Change{"api-version", from, to, say},
					func(o *Measurement) { o.Build.Major, o.Build.Minor = major, minor },
				},
			)
		}
	}
	return list
}

func (m *Measurement) builds() []circumstance {
	var list []circumstance
	for i := range 256 {
		b := uint8(i)
		if b == m.Build.Build {
			continue
		}
		say := fmt.Sprintf("the platform's firmware is build %d, and not %d as the host says", b, m.Build.Build)
		list = append(
			list,
			circumstance{
				Change{"build", fmt.Sprint(m.Build.Build), fmt.Sprint(b), say},
				func(o *Measurement) { o.Build.Build = b },
			},
		)
	}
	return list
}

// nonces are mistakes in how the 48 bytes are read.
func (m *Measurement) nonces() []circumstance {
	raw := m.Seen.Bytes()
	swapped := sev.Measurement{MAC: [32]byte(raw[16:]), Nonce: [16]byte(raw[:16])}
	zero := sev.Measurement{MAC: m.Seen.MAC}
	return []circumstance{
		{
			Change{"nonce", "last", "first", "the measurement has its nonce before the MAC, not after it"},
			func(o *Measurement) { o.Seen = swapped },
		},
		{
			Change{
				"nonce",
				"as given",
				"zero",
				"the MAC was made with a nonce of zeros, and a different one was handed over",
			},
			func(o *Measurement) { o.Seen = zero },
		},
	}
}
