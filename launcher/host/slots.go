package host

import (
	"bufio"
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
func Pools() []string { return []string{poolSEV, poolSEVES, poolSNP, poolTDX, poolMKTME} }

const (
	poolSEV   = "sev"
	poolSEVES = "sev-es" // of SEV-SNP too, unless ciphertext hiding splits it
	poolSNP   = "sev-snp"
	poolTDX   = "tdx"
	poolMKTME = "mktme"
)

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
	c := d.rep.CPU
	capacity, k := d.root.misc("misc.capacity"), d.root.kernelCount(c)
	add := func(name, resource string, total int, from string, technologies ...string) {
		if n, ok := capacity[resource]; ok {
			total, from = n, "misc.capacity"
		}
		p := Pool{Name: name, Technologies: technologies, Total: total, From: from}
		p.InUse, p.AtLeast = k.of(name)
		d.rep.Slots = append(d.rep.Slots, p)
	}
	if d.rep.SEV != nil && c.SEV && c.MaxGuests > 0 && c.MinSEVASID > 0 {
		const from = "CPUID 0x8000001f"
		add(poolSEV, "sev", max(0, c.MaxGuests-c.MinSEVASID+1), from, SEV)
		switch {
		case c.SEVES && k.hidden > 0:
			const split = "kvm_amd.ciphertext_hiding_asids"
			add(poolSNP, "", k.hidden, split, SNP)
			add(poolSEVES, "", k.shared-k.hidden, split, SEVES)
		case c.SEVES && c.SNP:
			add(poolSEVES, "sev_es", k.shared, from, SEVES, SNP)
		case c.SEVES:
			add(poolSEVES, "sev_es", k.shared, from, SEVES)
		}
	}
	if t := d.rep.TDX; t != nil && t.Enabled != No {
		total, from := -1, "unknown: the kernel's log and misc.capacity cannot be read"
		if t.KeyIDs > 0 { // the module keeps one for itself
			total, from = t.KeyIDs-1, "private key IDs, less the module's own"
		}
		add(poolTDX, "tdx", total, from, TDX)
	}
	if t := d.rep.TME; t != nil && t.MKTME == Yes {
		add(poolMKTME, "", t.KeyIDs, "IA32_TME_ACTIVATE", MKTME)
	}
}

// kernelCount is how many slots the kernel says are taken.
type kernelCount struct {
	current map[string]int // by its own names
	// SEV-ES and SEV-SNP take from one range, which ciphertext hiding splits, SNP's
	// part first (Linux, kvm-amd.ciphertext_hiding_asids). The kernel counts it as one.
	shared int // size of the range
	hidden int // SNP's part of it; 0: it is not split
}

func (r Root) kernelCount(c CPU) kernelCount {
	hiding, _ := strconv.Atoi(r.word("sys/module/kvm_amd/parameters/ciphertext_hiding_asids"))
	shared := max(0, c.MinSEVASID-1)
	return kernelCount{r.misc("misc.current"), shared, max(0, min(hiding, shared))}
}

// of is how many slots of a pool are in use; -1 if the kernel does not say. atLeast
// means that there may be more: what does not fit into one part of a split range is in
// the other.
func (k *kernelCount) of(pool string) (n int, atLeast bool) {
	resource, elsewhere := map[string]string{poolSEV: "sev", poolSEVES: "sev_es", poolTDX: "tdx"}[pool], 0
	switch {
	case k.hidden > 0 && pool == poolSNP:
		resource, elsewhere, atLeast = "sev_es", k.shared-k.hidden, true
	case k.hidden > 0 && pool == poolSEVES:
		elsewhere, atLeast = k.hidden, true
	}
	n, ok := k.current[resource]
	if !ok {
		return -1, false
	}
	return max(0, n-elsewhere), atLeast
}

// InUse counts a pool's slots anew, without a look at the rest of the host; -1 if the
// kernel does not say.
func (r Root) InUse(pool string) int {
	c, err := r.cpu()
	if err != nil {
		return -1
	}
	k := r.kernelCount(c)
	n, _ := k.of(pool)
	return n
}

// misc reads a file of the misc controller at the root of either hierarchy
// (Linux, Documentation/admin-guide/cgroup-v2.rst, Misc).
func (r Root) misc(name string) map[string]int {
	for _, dir := range []string{"sys/fs/cgroup/", "sys/fs/cgroup/misc/"} {
		b, err := r.read(dir + name)
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
