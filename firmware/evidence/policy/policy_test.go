package policy

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
)

const head = "schema = \"latch-policy/1\"\nname = \"appliance\"\n"

// digest is one that a policy may name.
var digest = `"` + strings.Repeat("ab", 48) + `"`

// Tables that are complete.
var (
	snpTable = "[sev-snp]\nchips = \"any\"\nhost-acpi = \"accept\"\ndigests = [" + digest + "]\n"
	tdxTable = "[tdx]\nchips = \"any\"\nhost-acpi = \"accept\"\nrtmr0 = \"profile:a\"\nmrtd = [" + digest +
		"]\nrtmr1 = [" +
		digest + "]\nrtmr2 = [" + digest + "]\n"
)

// TestRefusedPolicies: what demands too little, or what nothing can meet, is refused, and the
// key is named.
func TestRefusedPolicies(t *testing.T) {
	chip := `"` + strings.Repeat("01", 64) + `"`
	for name, c := range map[string]struct{ text, want string }{
		"empty":                 {"", "schema"},
		"another schema":        {strings.Replace(head, "/1", "/2", 1) + snpTable, "latch-policy/1"},
		"a path for a name":     {strings.Replace(head, "appliance", "../x", 1) + snpTable, "name"},
		"capitals":              {strings.Replace(head, "appliance", "Appliance", 1) + snpTable, "name"},
		"no technology":         {head, "no technology"},
		"unknown key":           {head + snpTable + "chip = 1\n", "line 7: unknown key sev-snp.chip"},
		"syntax":                {head + "x", "line 3"},
		"no chips":              {head + strings.Replace(snpTable, "chips = \"any\"\n", "", 1), "sev-snp.chips"},
		"empty chips":           {head + strings.Replace(snpTable, `"any"`, "[]", 1), "sev-snp.chips: is empty"},
		"chips by another word": {head + strings.Replace(snpTable, `"any"`, `"all"`, 1), "sev-snp.chips"},
		"a short chip":          {head + strings.Replace(snpTable, `"any"`, `["0102"]`, 1), "sev-snp.chips"},
		"a number for a chip":   {head + strings.Replace(snpTable, `"any"`, `[7]`, 1), "sev-snp.chips"},
		"no word about ACPI": {
			head + strings.Replace(snpTable, "host-acpi = \"accept\"\n", "", 1),
			"sev-snp.host-acpi",
		},
		"no digest": {
			head + strings.Replace(snpTable, "digests = ["+digest+"]\n", "", 1),
			"sev-snp.digests: is missing",
		},
		"empty digests":     {head + strings.Replace(snpTable, digest, "", 1), "sev-snp.digests: is empty"},
		"a short digest":    {head + strings.Replace(snpTable, digest, `"ab"`, 1), "sev-snp.digests"},
		"an empty digest":   {head + strings.Replace(snpTable, digest, `""`, 1), "sev-snp.digests"},
		"debug as a word":   {head + snpTable + "policy = [\"debug\"]\n", "debug = true"},
		"unknown word":      {head + snpTable + "policy = [\"smtt\"]\n", "smt"},
		"version":           {head + snpTable + "min-firmware = \"1\"\n", "sev-snp.min-firmware"},
		"unknown line":      {head + snpTable + "min-tcb.venice = { snp = 1 }\n", "venice"},
		"unknown component": {head + snpTable + "min-tcb.milan = { bootloder = 1 }\n", "bootloader"},
		"FMC of Milan":      {head + snpTable + "min-tcb.milan = { fmc = 1 }\n", "fmc"},
		"privilege level":   {head + snpTable + "vmpl = 4\n", "sev-snp.vmpl"},
		"host data":         {head + snpTable + "host-data = \"00\"\n", "sev-snp.host-data"},
		"stale":             {head + snpTable + "[tolerate]\ncrl-stale = \"1 month\"\n", "tolerate.crl-stale"},
		"negative":          {head + snpTable + "[tolerate]\ncrl-stale = \"-5h\"\n", "tolerate.crl-stale"},
		"emulated by name":  {strings.Replace(head, "appliance", "a-emulated", 1) + snpTable, "emulated: is missing"},
		"emulated by table": {head + snpTable + "[emulated]\nroot = \"x\"\n", "-emulated"},
		"emulated without root": {
			strings.Replace(head, "appliance", "a-emulated", 1) + snpTable + "[emulated]\n",
			"emulated.root",
		},
		"TDX without MRTD":  {head + strings.Replace(tdxTable, "mrtd = ["+digest+"]\n", "", 1), "tdx.mrtd"},
		"TDX without RTMR1": {head + strings.Replace(tdxTable, "rtmr1 = ["+digest+"]\n", "", 1), "tdx.rtmr1"},
		"TDX with empty RTMR2": {
			head + strings.Replace(tdxTable, "rtmr2 = ["+digest+"]", "rtmr2 = []", 1),
			"tdx.rtmr2: is empty",
		},
		"TDX without RTMR0":    {head + strings.Replace(tdxTable, "rtmr0 = \"profile:a\"\n", "", 1), "tdx.rtmr0"},
		"any RTMR0":            {head + strings.Replace(tdxTable, "profile:a", "any", 1), "tdx.rtmr0"},
		"zero RTMR0, genuine":  {head + strings.Replace(tdxTable, "profile:a", "emulated-zero", 1), "tdx.rtmr0"},
		"exact RTMR0, empty":   {head + strings.Replace(tdxTable, "profile:a", "exact:", 1), "tdx.rtmr0"},
		"a path for a profile": {head + strings.Replace(tdxTable, "profile:a", "profile:../a", 1), "tdx.rtmr0"},
		"TDX without ACPI": {
			head + strings.Replace(tdxTable, "host-acpi = \"accept\"\n", "", 1),
			"tdx.host-acpi",
		},
		"TDX without chips":    {head + strings.Replace(tdxTable, "chips = \"any\"\n", "", 1), "tdx.chips"},
		"a chip of SNP":        {head + strings.Replace(tdxTable, `"any"`, "["+chip+"]", 1), "tdx.chips"},
		"revoked accepted":     {head + tdxTable + "accept-tcb = [\"Revoked\"]\n", "tdx.accept-tcb"},
		"nothing accepted":     {head + tdxTable + "accept-tcb = []\n", "tdx.accept-tcb"},
		"advisory":             {head + tdxTable + "reject-advisories = [\"CVE-1\"]\n", "tdx.reject-advisories"},
		"debug attribute":      {head + tdxTable + "attributes = [\"debug\"]\n", "tdx.attributes"},
		"profile":              {head + tdxTable + "firmware-profile = \"x\"\n", "edk2-2026.08"},
		"family":               {head + tdxTable + "fmspc = [\"00\"]\n", "tdx.fmspc"},
		"SEV without files":    {head + "[sev]\nchips = \"any\"\n", "[guest]"},
		"kernel missing":       {head + "[guest]\nfirmware = \"x\"\ninitrd = \"y\"\n" + snpTable, "guest.kernel"},
		"firmware missing":     {head + "[guest]\nkernel = \"x\"\n" + snpTable, "guest.firmware"},
		"release without mode": {head + snpTable + "[[release]]\nsecret = \"disk\"\nfile = \"x\"\n", "mode"},
		"release of nothing":   {head + snpTable + "[[release]]\nsecret = \"disk\"\nmode = \"once\"\n", "file"},
		"release of both": {
			head + snpTable + "[[release]]\nsecret = \"disk\"\nmode = \"once\"\nfile = \"x\"\ncommand = [\"y\"]\n",
			"file",
		},
		"disk without header": {
			head + snpTable + "[[release]]\nsecret = \"disk\"\nmode = \"once\"\nfile = \"x\"\nkind = \"luks\"\n",
			"luks-header",
		},
		"max": {
			head + snpTable + "[[release]]\nsecret = \"disk\"\nmode = \"once\"\nfile = \"x\"\nmax = \"6\"\n",
			"max",
		},
		"an empty demand":  {head + snpTable + "host-data = \"\"\n", "sev-snp.host-data: is empty"},
		"an empty version": {head + snpTable + "min-firmware = \" \"\n", "sev-snp.min-firmware: is empty"},
		"an empty minimum": {head + snpTable + "min-tcb.milan = {}\n", "sev-snp.min-tcb.milan: is empty"},
		"a minimum of 0": {
			head + snpTable + "min-tcb.genoa = { tee = 0, snp = 0 }\n",
			"sev-snp.min-tcb.genoa: demands nothing",
		},
		"twice":           {head + snpTable + "vmpl = 1\nvmpl = 2\n", "stands there twice"},
		"version 0.0":     {head + snpTable + "min-firmware = \"0.0\"\n", "sev-snp.min-firmware"},
		"stale for ever":  {head + snpTable + "[tolerate]\ncrl-stale = \"65535d\"\n", "at most 366d"},
		"stale in hours":  {head + tdxTable + "[tolerate]\ncollateral-stale = \"2562047h\"\n", "at most 366d"},
		"negative number": {head + tdxTable + "min-evaluation = -3\n", "tdx.min-evaluation: -3"},
		"another case":    {head + snpTable + "debug = false\nDebug = true\n", "lower case"},
		"the same line twice": {
			head + snpTable + "min-tcb.milan = { snp = 24 }\nmin-tcb.Milan = { snp = 1 }\n",
			"lower case",
		},
		"short advisory": {
			head + tdxTable + "reject-advisories = [\"INTEL-SA-1192 \"]\n",
			"tdx.reject-advisories",
		},
		"the same twice": {
			head + snpTable + strings.Repeat("[[release]]\nsecret = \"disk\"\nmode = \"once\"\nfile = \"x\"\n", 2),
			"twice",
		},
	} {
		_, err := Parse([]byte(c.text))
		if !errors.Is(err, ErrPolicy) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q in it", name, err, c.want)
		}
	}
}

// TestDemands: what a policy says is what is demanded, and what it does not say is refused.
func TestDemands(t *testing.T) {
	f, err := Parse([]byte(head + snpTable + tdxTable))
	if err != nil {
		t.Fatal(err)
	}
	r, err := f.Report()
	if err != nil {
		t.Fatal(err)
	}
	if r.AllowSMT || r.AllowDebug || r.AllowMigrationAgent || r.AllowProvisional || r.AllowVLEK || !r.RequireCRL ||
		!r.RequireAliasCheck || r.VMPL == nil || *r.VMPL != 0 || r.Guest == nil ||
		*r.Guest != sev.SNPPolicyReserved ||
		len(r.Measurements) != 1 ||
		!r.AnyChip ||
		r.Chips != nil {
		t.Errorf("a policy that says nothing demands %+v", r)
	}
	q, err := f.Quote()
	if err != nil {
		t.Fatal(err)
	}
	if q.AllowDebug || q.AllowNoSEPTVEDisable || q.AllowAttributes != 0 || q.AllowServiceTD || q.NoCollateral ||
		q.AcceptStatus != nil || len(q.MRTD) != 1 || len(q.RTMR[1]) != 1 || len(q.RTMR[2]) != 1 {
		t.Errorf("a policy that says nothing demands %+v", q)
	}
	f, err = Parse([]byte(head + strings.Replace(snpTable, `"any"`, `["0102030405060708"]`, 1) +
		"policy = [\"smt\", \"abi=1.55\"]\nmin-firmware = \"1.55\"\n" +
		"min-tcb.turin = { fmc = 1, snp = 4 }\nvmpl = 2\nvlek = true\n" +
		"crl = false\nalias-check = false\n[tolerate]\ncrl-stale = \"30d\"\ncollateral-stale = \"12h\"\n" +
		strings.Replace(tdxTable, "profile:a", "exact:"+strings.Repeat("cd", 48), 1) +
		"attributes = [\"pks\"]\naccept-tcb = [\"UpToDate\", \"OutOfDate\"]\nmin-evaluation = 18\n"))
	if err != nil {
		t.Fatal(err)
	}
	if r, err = f.Report(); err != nil || !r.AllowSMT || *r.Guest != sev.SNPPolicyDefault|0x137 ||
		r.RequireCRL ||
		r.RequireAliasCheck ||
		r.MinTCB[kds.Turin]["fmc"] != 1 ||
		*r.VMPL != 2 ||
		len(r.Chips) != 1 ||
		r.CRLStale.Hours() != 720 {
		t.Errorf("%+v, %v", r, err)
	}
	if q, err = f.Quote(); err != nil || q.AllowAttributes != attr.PKS || len(q.AcceptStatus) != 2 ||
		len(q.RTMR[0]) != 1 ||
		q.CollateralStale.Hours() != 12 ||
		q.MinEvaluation != 18 {
		t.Errorf("%+v, %v", q, err)
	}
	f, err = Parse([]byte(head + snpTable))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Quote(); !errors.Is(err, ErrPolicy) {
		t.Errorf("a technology without a table: %v, want %v", err, ErrPolicy)
	}
}

// TestDigests: digests are worked out from the owner's files, and each file is named that they
// depend on.
func TestDigests(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("fw", ovmftest.AmdSev(ovmftest.ResetVector()))
	write("k", ovmftest.Kernel())
	write("i", []byte("an initrd"))
	write("cmdline", []byte("console=ttyS0 name=other\n"))
	write(
		"p.toml",
		[]byte(
			head+"[guest]\nfirmware = \"fw\"\nkernel = \"k\"\ninitrd = \"i\"\ncmdline = \"cmdline\"\ncpus = 2\n"+
				"cpu = \"EPYC-Milan\"\n[sev-snp]\nchips = \"any\"\nhost-acpi = \"accept\"\n"+
				"[sev]\nchips = \"any\"\n[sev-es]\nchips = \"any\"\n"+
				"[[release]]\nsecret = \"disk\"\nmode = \"once\"\n"+
				"file = \"x\"\nkind = \"luks\"\nluks-header = \"unchecked\"\n",
		),
	)
	f, err := Read(filepath.Join(dir, "p.toml"))
	if err != nil {
		t.Fatal(err)
	}
	list, err := f.Digests()
	if err != nil {
		t.Fatal(err)
	}
	var technologies []string
	for _, d := range list {
		technologies = append(technologies, d.Technology)
		if d.Hex != hex.EncodeToString(d.Value) || strings.Join(d.From, " ") != "fw k i cmdline" {
			t.Errorf("%+v, want all four files", d)
		}
	}
	if got := strings.Join(technologies, " "); got != "sev sev-es sev-snp" {
		t.Errorf("digests of %s, want each technology's", got)
	}
	line, err := f.Cmdline()
	if err != nil || line != "console=ttyS0 name=other" {
		t.Errorf("command line %q, %v", line, err)
	}
	open := strings.Join(f.Open(line), "\n")
	for _, want := range []string{"any chip", "SEV, which protects neither", "unchecked", "names no broker"} {
		if want == "unchecked" {
			want = "a disk without encryption"
		}
		if !strings.Contains(open, want) {
			t.Errorf("open: %s\nwant %q", open, want)
		}
	}
	write("cmdline", []byte("a\nb\n"))
	if _, err := f.Digests(); !errors.Is(err, ErrPolicy) {
		t.Errorf("a command line of two lines: %v, want %v", err, ErrPolicy)
	}
	write("cmdline", []byte("a"))
	if err := os.Remove(filepath.Join(dir, "k")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Digests(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing kernel: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(head + snpTable + tdxTable)
	f.Fuzz(func(_ *testing.T, text string) {
		if p, err := Parse([]byte(text)); err == nil {
			_ = p.Open("")
		}
	})
}

// TestOpen: what a policy leaves open is said.
func TestOpen(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"migration agent":     {snpTable + "policy = [\"smt\", \"migrate\"]\n", "migration agent"},
		"agent as a number":   {snpTable + "policy = [\"0x70000\"]\n", "migration agent"},
		"no SMT":              {snpTable, "allows SMT are refused"},
		"stale lists":         {snpTable + "[tolerate]\ncrl-stale = \"30d\"\n", "in the 30d"},
		"out of date":         {tdxTable + "accept-tcb = [\"OutOfDate\"]\n", "known to be vulnerable"},
		"migratable":          {tdxTable + "attributes = [\"migratable\"]\n", "migration TD"},
		"ACPI":                {snpTable, "ACPI code"},
		"ACPI of domains":     {tdxTable, "tdx: the host's ACPI code"},
		"any age of firmware": {snpTable, "firmware of any age"},
	} {
		f, err := Parse([]byte(head + c.text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := strings.Join(f.Open(""), "\n"); !strings.Contains(got, c.want) {
			t.Errorf("%s: %s\nwant %q in it", name, got, c.want)
		}
	}
	f, err := Parse([]byte(head + snpTable + "policy = [\"0x30000\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(f.Open(""), "\n"); strings.Contains(got, "SMT") {
		t.Errorf("a number that allows SMT: %s", got)
	}
}

// TestWords: a guest that would ask another broker, or for another policy, is refused.
func TestWords(t *testing.T) {
	const pin = "ed25519:P7W-b7FGobDZs_B-_0huli6SrHTSeDAXdx2xFNQoDro"
	key, err := exchange.ParseKey(pin)
	if err != nil {
		t.Fatal(err)
	}
	f := &File{Name: "appliance"}
	for line, want := range map[string]string{
		"console=ttyS0": "",
		"latch.key=" + pin + " latch.name=appliance latch.broker=port":                  "",
		"latch.key=" + pin + " latch.name=other latch.broker=port":                      "latch.name=other is not",
		"latch.key=" + pin + " latch.name=appliance":                                    "latch.broker is missing",
		"latch.name=appliance latch.broker=port":                                        "latch.key is missing",
		"latch.key=" + pin + " latch.name=appliance latch.broker=port latch.kem=x25519": "latch.kem=x25519",
	} {
		err := f.CheckWords(line, key)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
	if err := f.CheckWords("latch.key="+pin+" latch.name=appliance latch.broker=port", exchange.Key{1}); err == nil {
		t.Error("a guest of another broker is taken")
	}
}
