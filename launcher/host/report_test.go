package host

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vmlatch/vmlatch/launcher/internal/testdir"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// recordOf unpacks a recorded host.
func recordOf(t testing.TB, name string) Root {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata/hosts", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	dir := testdir.InMemory(t)
	if err := txtar.Write(a, dir); err != nil {
		t.Fatal(err)
	}
	return Root(dir)
}

// TestRecordedHosts compares whole reports. Refresh them with -update, and read
// what changed.
func TestRecordedHosts(t *testing.T) {
	files, _ := filepath.Glob("testdata/hosts/*.txtar")
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txtar")
		t.Run(name, func(t *testing.T) {
			rep, err := Detect(recordOf(t, name))
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(rep, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata/hosts", name+".json")
			if *update {
				if err := os.WriteFile(golden, append(got, '\n'), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)+"\n"); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestUsable is what the golden reports must say, in short.
func TestUsable(t *testing.T) {
	for name, want := range map[string]string{
		"naples":        "sev=yes sev-es=no sev-snp=no tdx=no mktme=no; sev 15/3",
		"milan-snp-off": "sev=yes sev-es=yes sev-snp=no tdx=no mktme=no; sev 410/0 sev-es 99/2",
		"milan-snp-on":  "sev=yes sev-es=yes sev-snp=yes tdx=no mktme=no; sev 410/1 sev-es 99/98",
		"genoa-hiding":  "sev=yes sev-es=yes sev-snp=yes tdx=no mktme=no; sev 907/-1 sev-snp 60/-1 sev-es 39/-1",
		"tdx":           "sev=no sev-es=no sev-snp=no tdx=yes mktme=no; tdx 63/-1 mktme 64/-1",
		"tme-only":      "sev=no sev-es=no sev-snp=no tdx=no mktme=unknown;",
		"no-tee":        "sev=no sev-es=no sev-snp=no tdx=no mktme=no;",
		"container":     "sev=no sev-es=no sev-snp=no tdx=no mktme=no; sev 907/-1 sev-es 99/-1",
	} {
		rep, err := Detect(recordOf(t, name))
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, tech := range rep.Technologies {
			words = append(words, tech.Name+"="+string(tech.Usable))
			if tech.Usable == No && tech.Why == "" {
				t.Errorf("%s: %s is not usable, want a reason", name, tech.Name)
			}
		}
		got := strings.Join(words, " ") + ";"
		for _, p := range rep.Slots {
			b, _ := json.Marshal([]int{p.Total, p.InUse})
			got += " " + p.Name + " " + strings.NewReplacer("[", "", "]", "", ",", "/").Replace(string(b))
		}
		if got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

// TestFirmware: descriptors are the record's, not this machine's.
func TestFirmware(t *testing.T) {
	found := recordOf(t, "tdx").Firmware()
	if len(found) != 1 || found[0].Image != "/usr/share/ovmf/OVMF.inteltdx.fd" {
		t.Errorf("%+v", found)
	}
	if found := recordOf(t, "no-tee").Firmware(); len(found) != 0 {
		t.Errorf("%+v", found)
	}
}

// TestSplitPools: where the kernel counts two pools as one, what is known is told as
// what it is.
func TestSplitPools(t *testing.T) {
	r := recordOf(t, "genoa-hiding")
	for current, want := range map[string][2]int{"99": {60, 39}, "50": {11, 0}, "0": {0, 0}} {
		if err := r.write("sys/fs/cgroup/misc.current", []byte("sev 0\nsev_es "+current+"\n")); err != nil {
			t.Fatal(err)
		}
		rep, err := Detect(r)
		if err != nil {
			t.Fatal(err)
		}
		snp, _ := rep.PoolOf(SNP)
		es, _ := rep.PoolOf(SEVES)
		if snp.InUse != want[0] || es.InUse != want[1] || !snp.AtLeast || !es.AtLeast {
			t.Errorf("%s in use: %+v, %+v, want %v", current, snp, es, want)
		}
		if a, b := r.InUse("sev-snp"), r.InUse("sev-es"); a != snp.InUse || b != es.InUse {
			t.Errorf("counted anew: %d, %d", a, b)
		}
	}
	if a, b := r.InUse("sev"), r.InUse("tdx"); a != 0 || b != -1 {
		t.Errorf("%d of sev, %d of tdx", a, b)
	}
}

// TestMalformedHost: files that no kernel writes are not a reason to fail, nor to
// believe them.
func TestMalformedHost(t *testing.T) {
	for file, content := range map[string]string{
		"sys/fs/cgroup/misc.capacity": "sev\nsev_es x y\n\x00\nsev_es 999999999999999999999",
		"proc/cpuinfo":                strings.Repeat("flags", 1<<16),
		"recorded/dmesg.txt":          "tdx: BIOS enabled: private KeyID range [99999999999999999999, 1)\n",
		"recorded/msr.json":           `{"0xc0010010": "many"}`,
		"recorded/kvm.json":           `[]`,
		"proc/sys/kernel/osrelease":   "what",
	} {
		r := recordOf(t, "milan-snp-on")
		if err := r.write(file, []byte(content)); err != nil {
			t.Fatal(err)
		}
		rep, err := Detect(r)
		if err != nil {
			t.Errorf("%s: %v", file, err)
		} else if p, ok := rep.PoolOf(SNP); !ok || p.Total != 99 {
			t.Errorf("%s: pool %+v", file, p)
		}
	}
	odd := recordOf(t, "no-tee")
	intel := `{"vendor":"GenuineIntel","sev":true,"sev-es":true,"max-guests":10,"min-sev-asid":5}`
	if err := odd.write("recorded/cpu.json", []byte(intel)); err != nil {
		t.Fatal(err)
	}
	if rep, err := Detect(odd); err != nil || len(rep.Slots) != 0 {
		t.Errorf("an Intel processor with SEV: %+v, %v, want no slots", rep, err)
	}
	for _, cpu := range []string{
		`{"vendor":"AuthenticAMD","sev":true,"sev-es":true,"max-guests":0,"min-sev-asid":5}`,
		`{"vendor":"AuthenticAMD","sev":true,"sev-es":true,"max-guests":10,"min-sev-asid":0}`,
		`{"vendor":"AuthenticAMD","sev":false,"sev-es":true,"max-guests":10,"min-sev-asid":5}`,
	} {
		if err := odd.write("recorded/cpu.json", []byte(cpu)); err != nil {
			t.Fatal(err)
		}
		if rep, err := Detect(odd); err != nil || len(rep.Slots) != 0 {
			t.Errorf("%s: %+v, %v, want no slots", cpu, rep, err)
		}
	}
	r := recordOf(t, "milan-snp-on")
	if err := r.write("recorded/cpu.json", []byte("{")); err != nil {
		t.Fatal(err)
	}
	if _, err := Detect(r); err == nil {
		t.Error("half a record is a host")
	}
}

// TestRecord: a record of this host gives this host's report.
func TestRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "record")
	if err := Root("/").Record(dir); err != nil {
		t.Fatal(err)
	}
	want, err := Detect("/")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Detect(Root(dir))
	if err != nil {
		t.Fatal(err)
	}
	got.MemFree = want.MemFree // another moment
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-host +record):\n%s", diff)
	}
	if err := Root("/").Record(dir); err == nil {
		t.Error("a record was overwritten")
	}
}

// FuzzDetect: what a record holds is as hostile as what a guest says.
func FuzzDetect(f *testing.F) {
	f.Add(`{"vendor":"AuthenticAMD","sev":true,"sev-es":true,"sev-snp":true,"max-guests":509,"min-sev-asid":100}`,
		"sev 410\nsev_es 99\n", "SEV-SNP API:1.55 build:21\nvirt/tdx: BIOS enabled: private KeyID range [64, 128)",
		"60")
	f.Add(`{"vendor":"GenuineIntel","tme":true}`, "tdx -1\n", "x86/mktme: 63 KeyIDs available", "Y")
	f.Fuzz(func(t *testing.T, cpu, misc, log, parameter string) {
		r := Root(t.TempDir())
		for name, text := range map[string]string{
			"recorded/cpu.json":                                     cpu,
			"sys/fs/cgroup/misc.capacity":                           misc,
			"sys/fs/cgroup/misc.current":                            misc,
			"recorded/dmesg.txt":                                    log,
			"recorded/msr.json":                                     cpu,
			"sys/module/kvm_amd/parameters/ciphertext_hiding_asids": parameter,
			"sys/module/kvm_intel/parameters/tdx":                   parameter,
			"proc/meminfo":                                          log,
			"proc/cpuinfo":                                          "flags : svm vmx\n",
			"dev/kvm":                                               "",
		} {
			if err := r.write(name, []byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		if rep, err := Detect(r); err == nil && len(rep.Technologies) != 5 {
			t.Errorf("%d technologies", len(rep.Technologies))
		}
	})
}
