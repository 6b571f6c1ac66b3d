package host

import (
	"bufio"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Pool is a set of encryption slots: address-space IDs on AMD, key IDs on Intel.
// Each running guest of its technologies takes one.
type Pool struct {
	Name         string   `json:"name"`
	Technologies []string `json:"technologies"`
	Total        int      `json:"total"`  // -1: unknown
	From         string   `json:"from"`   // where the total comes from
	InUse        int      `json:"in-use"` // by all guests of the host; -1: unknown
	// AtLeast means that InUse may be more: the kernel counts two pools as one.
	AtLeast bool `json:"in-use-at-least,omitempty"`
}

// Pools are the names that pools can have.
var Pools = []string{"sev", "sev-es", "sev-snp", "tdx", "mktme"}

// PoolOf returns the pool that a technology takes its slots from.
func (rep *Report) PoolOf(technology string) (Pool, bool) {
	i := slices.IndexFunc(rep.Slots, func(p Pool) bool { return slices.Contains(p.Technologies, technology) })
	if i < 0 {
		return Pool{}, false
	}
	return rep.Slots[i], true
}

// slots counts. The kernel's own count (misc cgroup) wins over what can be
// worked out: it knows what it keeps for itself.
func (d *detector) slots() {
	capacity, current := d.misc("misc.capacity"), d.misc("misc.current")
	add := func(name, resource string, total int, from string, technologies ...string) {
		if n, ok := capacity[resource]; ok {
			total, from = n, "misc.capacity"
		}
		p := Pool{Name: name, Technologies: technologies, Total: total, From: from, InUse: -1}
		if n, ok := current[resource]; ok {
			p.InUse = n
		}
		d.rep.Slots = append(d.rep.Slots, p)
	}
	if c := d.rep.CPU; d.rep.SEV != nil && c.SEV && c.MaxGuests > 0 && c.MinSEVASID > 0 {
		const from = "CPUID 0x8000001f"
		add("sev", "sev", max(0, c.MaxGuests-c.MinSEVASID+1), from, SEV)
		if c.SEVES {
			shared, known := current["sev_es"]
			if !known {
				shared = -1
			}
			d.sharedSlots(add, c.MinSEVASID-1, shared, from)
		}
	}
	if t := d.rep.TDX; t != nil && t.Enabled != No {
		total, from := -1, "unknown: the kernel's log and misc.capacity cannot be read"
		if t.KeyIDs > 0 { // the module keeps one for itself
			total, from = t.KeyIDs-1, "private key IDs, less the module's own"
		}
		add("tdx", "tdx", total, from, TDX)
	}
	if t := d.rep.TME; t != nil && t.MKTME == Yes {
		add("mktme", "", t.KeyIDs, "IA32_TME_ACTIVATE", MKTME)
	}
}

// sharedSlots: SEV-ES and SEV-SNP take from one range, which ciphertext hiding
// splits, SNP's part first (Linux, kvm-amd.ciphertext_hiding_asids).
func (d *detector) sharedSlots(add func(string, string, int, string, ...string), total, inUse int, from string) {
	hidden := min(d.rep.SEV.CiphertextHiding, total)
	if hidden <= 0 {
		technologies := []string{SEVES}
		if d.rep.CPU.SNP {
			technologies = append(technologies, SNP)
		}
		add("sev-es", "sev_es", total, from, technologies...)
		return
	}
	const split = "kvm_amd.ciphertext_hiding_asids"
	add("sev-snp", "", hidden, split, SNP)
	add("sev-es", "", total-hidden, split, SEVES)
	if inUse < 0 {
		return
	}
	for i := range d.rep.Slots { // what does not fit into the one is in the other
		switch p := &d.rep.Slots[i]; p.Name {
		case "sev-snp":
			p.InUse, p.AtLeast = max(0, inUse-(total-hidden)), true
		case "sev-es":
			p.InUse, p.AtLeast = max(0, inUse-hidden), true
		}
	}
}

// InUse counts a pool's slots anew; -1 if nobody says.
func (r Root) InUse(pool string) int {
	rep, err := DetectWithoutLog(r)
	if err != nil {
		return -1
	}
	for _, p := range rep.Slots {
		if p.Name == pool {
			return p.InUse
		}
	}
	return -1
}

// misc reads a file of the misc controller at the root of either hierarchy
// (Linux, Documentation/admin-guide/cgroup-v2.rst, Misc).
func (d *detector) misc(name string) map[string]int {
	for _, dir := range []string{"sys/fs/cgroup/", "sys/fs/cgroup/misc/"} {
		b, err := d.root.read(dir + name)
		if err != nil {
			continue
		}
		counts := map[string]int{}
		lines := bufio.NewScanner(strings.NewReader(string(b)))
		for lines.Scan() {
			key, value, _ := strings.Cut(lines.Text(), " ")
			if n, err := strconv.Atoi(strings.TrimSpace(value)); err == nil {
				counts[key] = n
			}
		}
		return counts
	}
	return nil
}

func (p Pool) String() string {
	total := "unknown"
	if p.Total >= 0 {
		total = strconv.Itoa(p.Total)
	}
	return fmt.Sprintf("%s: %s slots for %s", p.Name, total, strings.Join(p.Technologies, ", "))
}
