package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Answer is yes, no, or unknown: what this user may not read is not guessed.
type Answer string

// Answers.
const (
	Yes     Answer = "yes"
	No      Answer = "no"
	Unknown Answer = "unknown"
)

func answer(b bool) Answer {
	if b {
		return Yes
	}
	return No
}

// Names of technologies, as specs use them.
const (
	SEV   = "sev"
	SEVES = "sev-es"
	SNP   = "sev-snp"
	TDX   = "tdx"
	MKTME = "mktme"
)

// Technology is what a host can do about one kind of guest.
type Technology struct {
	Name   string `json:"name"`
	Usable Answer `json:"usable"`
	Why    string `json:"why,omitempty"` // what is missing or cannot be read
	Fix    string `json:"fix,omitempty"`
}

// Report is what a host can do (vmlatch.host/1).
type Report struct {
	Schema       string       `json:"schema"`
	Kernel       string       `json:"kernel"`
	CPU          CPU          `json:"cpu"`
	KVM          Technology   `json:"kvm"`
	Technologies []Technology `json:"technologies"`
	Slots        []Pool       `json:"slots"`
	SMT          Answer       `json:"smt"`
	MemFree      uint64       `json:"memory-available"` // bytes (MemAvailable); 0: unknown
	IOMMU        IOMMU        `json:"iommu"`
	SEV          *SEVHost     `json:"sev,omitempty"`
	TDX          *TDXHost     `json:"tdx,omitempty"`
	TME          *TME         `json:"tme,omitempty"`
}

// ReportSchema names the format of reports.
const ReportSchema = "vmlatch.host/1"

// IOMMU is the state of the host's DMA translation.
type IOMMU struct {
	Present     Answer `json:"present"`
	Passthrough Answer `json:"passthrough"` // devices reach all memory
}

// SEVHost is what concerns AMD's technologies.
type SEVHost struct {
	CBitPos          int    `json:"cbitpos"`
	SNPEnabled       Answer `json:"snp-enabled"` // the host keeps a reverse map table
	INIT2            Answer `json:"init2"`       // KVM takes KVM_SEV_INIT2
	DebugSwap        Answer `json:"debug-swap"`  // KVM sets sev_features bit 5 in SEV-ES guests
	CiphertextHiding int    `json:"ciphertext-hiding-asids"`
	API              string `json:"api,omitempty"`     // of the secure processor, such as 1.55
	SNPAPI           string `json:"snp-api,omitempty"` // the same, for SEV-SNP
}

// TDXHost is what concerns TDX.
type TDXHost struct {
	Enabled     Answer `json:"enabled"`     // kvm_intel.tdx
	Initialized Answer `json:"initialized"` // the module runs
	KeyIDs      int    `json:"key-ids"`     // private ones; 0: unknown
	Module      string `json:"module,omitempty"`
	QuoteSocket Answer `json:"quote-socket"`
}

// TME is Intel's memory encryption with host-held keys.
type TME struct {
	Enabled   Answer `json:"enabled"`
	MKTME     Answer `json:"mktme"`
	KeyIDs    int    `json:"key-ids"`         // for MKTME; 0: none or unknown
	TDXKeyIDs int    `json:"tdx-key-ids"`     // of those that TDX has
	KeyType   Answer `json:"kernel-key-type"` // the kernel has keys of type mktme
}

// Detect looks at the host below a root. What it cannot find out it reports as
// unknown; an error means that there is no host to look at.
func Detect(r Root) (*Report, error) { return (&detector{root: r}).detect() }

// DetectWithoutLog leaves the kernel's log unread, which takes longer than all the
// rest: versions of firmware, and key IDs that nothing else tells, are unknown then.
func DetectWithoutLog(r Root) (*Report, error) {
	return (&detector{root: r, log: new(string)}).detect()
}

func (d *detector) detect() (*Report, error) {
	r := d.root
	cpu, err := r.cpu()
	if err != nil {
		return nil, err
	}
	d.rep = &Report{
		Schema: ReportSchema,
		Slots:  []Pool{},
		Kernel: r.word("proc/sys/kernel/osrelease"),
		CPU:    cpu,
		SMT:    Unknown,
		KVM:    Technology{Name: "kvm", Usable: Yes},
	}
	if ok, why := r.kvm(); !ok {
		d.rep.KVM = Technology{
			Name:   "kvm",
			Usable: No,
			Why:    why,
			Fix: "enable virtualisation in the machine's setup, load kvm_amd or kvm_intel, " +
				"and give this user access to /dev/kvm",
		}
		if errors.Is(r.access("dev/kvm"), fs.ErrPermission) {
			d.rep.KVM.Fix = "add this user to the group kvm (usermod -aG kvm USER), and log in again"
		}
	}
	if w := r.word("sys/devices/system/cpu/smt/active"); w != "" {
		d.rep.SMT = answer(w == "1")
	}
	d.rep.MemFree = memAvailable(r.word("proc/meminfo"))
	d.iommu()
	d.amd()
	d.intel()
	d.complete()
	d.slots()
	return d.rep, nil
}

// complete adds a row for what the processor's vendor does not have.
func (d *detector) complete() {
	var rows []Technology
	for _, t := range [...]struct{ name, vendor string }{
		{SEV, "AMD"},
		{SEVES, "AMD"},
		{SNP, "AMD"},
		{TDX, "Intel"},
		{MKTME, "Intel"},
	} {
		row := Technology{Name: t.name, Usable: No, Why: "needs a processor by " + t.vendor}
		for _, have := range d.rep.Technologies {
			if have.Name == t.name {
				row = have
			}
		}
		rows = append(rows, row)
	}
	d.rep.Technologies = rows
}

// Technology returns what the report says of one.
func (rep *Report) Technology(name string) Technology {
	for _, t := range rep.Technologies {
		if t.Name == name {
			return t
		}
	}
	return Technology{Name: name, Usable: No, Why: "not known"}
}

// FreeHugePages counts the free pages of each size in bytes (Linux,
// Documentation/admin-guide/mm/hugetlbpage.rst); nil where there are none. Few
// guests need to know, so [Detect] leaves it out.
func (r Root) FreeHugePages() map[uint64]uint64 { return r.freeIn("sys/kernel/mm/hugepages") }

// FreeHugePagesOn counts those on some of the host's nodes.
func (r Root) FreeHugePagesOn(nodes []int) map[uint64]uint64 {
	var all map[uint64]uint64
	for _, n := range nodes {
		for size, free := range r.freeIn(fmt.Sprintf("sys/devices/system/node/node%d/hugepages", n)) {
			if all == nil {
				all = map[uint64]uint64{}
			}
			all[size] += free
		}
	}
	return all
}

// Nodes are those of the host that have memory, as a list such as 0-1
// (Linux, Documentation/ABI/stable/sysfs-devices-node).
func (r Root) Nodes() string { return r.word("/sys/devices/system/node/has_memory") }

func (r Root) freeIn(dir string) map[uint64]uint64 {
	sizes, err := os.ReadDir(r.path(dir))
	if err != nil {
		return nil
	}
	free := map[uint64]uint64{}
	for _, e := range sizes {
		var kib uint64
		if n, _ := fmt.Sscanf(e.Name(), "hugepages-%dkB", &kib); n == 1 {
			free[kib<<10], _ = strconv.ParseUint(r.word(dir+"/"+e.Name()+"/free_hugepages"), 10, 64)
		}
	}
	return free
}

// memAvailable reads /proc/meminfo (proc(5)).
func memAvailable(text string) uint64 {
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemAvailable:" && f[2] == "kB" {
			n, _ := strconv.ParseUint(f[1], 10, 50)
			return n << 10
		}
	}
	return 0
}

type detector struct {
	root Root
	rep  *Report
	log  *string
}

// kernelLog is read at most once, and only on hosts where it can matter.
func (d *detector) kernelLog() string {
	if d.log == nil {
		text, _ := d.root.dmesg() // unreadable is the same as silent
		d.log = &text
	}
	return *d.log
}

// parameter reads a module's switch.
func (d *detector) parameter(name string) Answer {
	switch w := d.root.word("sys/module/" + name); w {
	case "Y", "1":
		return Yes
	case "N", "0":
		return No
	}
	return Unknown
}

func (d *detector) iommu() {
	units, _ := os.ReadDir(d.root.path("sys/class/iommu"))
	d.rep.IOMMU = IOMMU{Present: answer(len(units) > 0), Passthrough: Unknown}
	options := strings.Fields(d.root.word("proc/cmdline"))
	for _, o := range options {
		if o == "iommu=pt" || o == "iommu.passthrough=1" {
			d.rep.IOMMU.Passthrough = Yes
			return
		}
	}
	if t := d.root.word("sys/kernel/iommu_groups/0/type"); t != "" {
		d.rep.IOMMU.Passthrough = answer(t == "identity")
	}
}

func (d *detector) add(name string, usable Answer, why, fix string) {
	d.rep.Technologies = append(d.rep.Technologies, Technology{name, usable, why, fix})
}

// Lines of the kernel's log (Linux, drivers/crypto/ccp/sev-dev.c,
// arch/x86/virt/vmx/tdx/tdx.c, arch/x86/kernel/cpu/intel.c).
var (
	reSEVAPI    = compiled(`SEV API:(\d+\.\d+) build:\d+`)
	reSNPAPI    = compiled(`SEV-SNP API:(\d+\.\d+) build:\d+`)
	reTDXKeyIDs = compiled(`tdx: BIOS enabled: private KeyID range \[(\d+), ?(\d+)\)`)
	reTDXInit   = compiled(`tdx: module initialized`)
	reTDXModule = compiled(`tdx: TDX module:? .*?major_version (\d+), minor_version (\d+)`)
	reMKTMEKeys = compiled(`x86/mktme: (\d+) KeyIDs available`)
	reTME       = compiled(`x86/tme: enabled by BIOS`)

	logPatterns = [...]pattern{
		reSEVAPI, reSNPAPI, reTDXKeyIDs, reTDXInit, reTDXModule, reMKTMEKeys, reTME,
		reSEVFailed, rePSPDead, reSEVDisabled, reTDXFailed,
	}
)

// pattern is a regular expression that is compiled when it is first used: most
// commands use none.
type pattern func() *regexp.Regexp

func compiled(text string) pattern {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// relevantLines keeps of a kernel's log what a report reads.
func relevantLines(log string) string {
	var b strings.Builder
	for line := range strings.Lines(log) {
		if slices.ContainsFunc(logPatterns[:], func(p pattern) bool { return p().MatchString(line) }) {
			b.WriteString(line)
		}
	}
	return b.String()
}

// lastMatch returns the parts of the last match, joined by dots; modules may be
// loaded again.
func lastMatch(p pattern, log string) string {
	all := p().FindAllStringSubmatch(log, -1)
	if len(all) == 0 {
		return ""
	}
	return strings.Join(all[len(all)-1][1:], ".")
}

// KernelAtLeast compares the kernel's release, such as 6.11.0-rc1; false for one
// that does not begin with two numbers.
func (rep *Report) KernelAtLeast(major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(rep.Kernel, "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}
