package laws

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// floors are the rooms of the house, from the top down. A room may import those on
// lower floors, and those on its own floor that stand after it on the line.
var floors = [][]string{
	{
		"cmd/vmlatch", "cmd/latchkey", "cmd/swtee", "cmd/latchguest", "cmd/latchguest-tpm", "cmd/latchkey/broker",
		"cmd/internal/sdnotify", "cmd/internal/cli",
	},
	{"launcher"},
	{"launcher/check", "launcher/advice"},
	{"launcher/tee"},
	{"launcher/plan"},
	{"launcher/spec"},
	{"launcher/fault"},
	{
		"launcher/host", "launcher/slot", "launcher/rundir", "launcher/logkeeper", "launcher/swtpm",
		"launcher/confine", "launcher/cgroup",
	},
	{
		"launcher/internal/argv", "launcher/internal/flock", "launcher/internal/diskimage",
		"launcher/internal/vsock",
		"launcher/internal/logfile", "launcher/internal/seed", "launcher/internal/tuntap",
	},
	{"launcher/internal/procfs"},
	{
		"firmware/swtee/twin", "firmware/swtee/tcg", "firmware/swtee/under", "firmware/swtee/guestdev",
		"firmware/swtee/port", "firmware/swtee", "firmware/swtee/attest", "firmware/explain", "firmware/inspect",
	},
	{"keyring", "qmp", "qmp/qtest"},
	{"firmware/evidence"},
	{"firmware/evidence/policy", "firmware/evidence/bundle"},
	{"firmware/tdx/rtmr"},
	{"firmware/sev/exchange", "firmware/sev/session", "firmware/sev/launch", "firmware/tdx"},
	{"firmware/sev/report", "firmware/tdx/quote"},
	{
		"firmware/sev/kds", "firmware/tdx/collateral", "firmware/tdx/ccel", "firmware/tpm/predict",
		"firmware/tpm/verify", "firmware/tpm/quote", "firmware/tpm/tpmkey", "firmware/tpm/seal", "firmware/tpm",
	},
	{"firmware/eventlog", "firmware/authenticode"},
	{"firmware/evidence/exchange"},
	{"firmware/pki"},
	{"firmware/refusal"},
	{"firmware/igvm", "firmware/sev", "firmware/bzimage", "firmware/sev/table"},
	{
		"firmware/ovmf", "firmware/ffs", "firmware/uefivar", "firmware/guid", "firmware/cpuid", "firmware/nearest",
		"firmware/xdg", "firmware/tdx/attr", "firmware/firstboot",
	},
	{
		"firmware/regular", "firmware/luks/metadata", "firmware/luks", "firmware/credential", "firmware/bytesize",
		"firmware/newc",
	},
	{"firmware/smallfmt"},
}

// support are packages that only tests and the builders of test guests import.
var support = []string{
	"firmware/authenticode/petest", "firmware/eventlog/eventlogtest", "firmware/evidence/evidencetest",
	"firmware/ffs/ffstest", "firmware/internal/vectors", "firmware/ovmf/ovmftest",
	"firmware/swtee/guestdev/tsmprobe", "firmware/tpm/tpmtest",
	"launcher/internal/testdir", "launcher/internal/testhost", "qmp/qmptest",
}

type pkg struct {
	ImportPath string
	Imports    []string
}

const module = "github.com/vmlatch/vmlatch/"

// packages lists the module's packages with their imports, without tests.
func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...").Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p pkg
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, module)
		var own []string
		for _, i := range p.Imports {
			if name, ok := strings.CutPrefix(i, module); ok {
				own = append(own, name)
			}
		}
		p.Imports = own
		list = append(list, p)
	}
	return list
}

// place is a room's floor, and its place on it.
func place(room string) (floor, at int, err error) {
	for i, f := range floors {
		if j := slices.Index(f, room); j >= 0 {
			return i, j, nil
		}
	}
	return 0, 0, errors.New("stands on no floor: give it one in imports_test.go")
}

// TestImportsGoDown: a room knows only those below it.
func TestImportsGoDown(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasPrefix(p.ImportPath, "integration") || slices.Contains(support, p.ImportPath) {
			continue // whoever builds tests may know everything
		}
		if strings.HasPrefix(p.ImportPath, "firmware/") && strings.Contains(p.ImportPath, "/internal/") {
			continue // below all of firmware; what it imports is checked as an import below
		}
		floor, at, err := place(p.ImportPath)
		if err != nil {
			t.Errorf("%s: %v", p.ImportPath, err)
			continue
		}
		for _, i := range p.Imports {
			if slices.Contains(support, i) || strings.HasPrefix(i, "integration") {
				t.Errorf("%s imports %s, which is for tests", p.ImportPath, i)
				continue
			}
			if strings.HasPrefix(i, "firmware/") && strings.Contains(i, "/internal/") {
				continue
			}
			f, a, err := place(i)
			if err != nil {
				t.Errorf("%s imports %s: %v", p.ImportPath, i, err)
			} else if f < floor || f == floor && a <= at {
				t.Errorf("%s imports %s, which is not below it", p.ImportPath, i)
			}
		}
	}
}

// TestChecksAreMadeAtTheTop: the rooms below the launcher do not make checks, and do not
// explain errors.
func TestChecksAreMadeAtTheTop(t *testing.T) {
	for _, p := range packages(t) {
		for _, room := range []string{"launcher/check", "launcher/advice"} {
			if slices.Contains(p.Imports, room) && !strings.HasPrefix(p.ImportPath, "cmd/vmlatch") &&
				p.ImportPath != "launcher" {
				t.Errorf("%s imports %s", p.ImportPath, room)
			}
		}
	}
}

// TestFrontDoor: what "go doc -short" lists of the launcher fits a screen.
func TestFrontDoor(t *testing.T) {
	const most = 45
	out, err := exec.Command("go", "doc", "-short", module+"launcher").Output()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(out), "\n"); n > most {
		t.Errorf("%d names, at most %d are wanted:\n%s", n, most, out)
	}
}
