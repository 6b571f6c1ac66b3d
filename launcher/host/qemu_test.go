package host

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vmlatch/vmlatch/integration/qemus"
)

// TestProbe compares what each QEMU says with what its release notes say.
func TestProbe(t *testing.T) {
	type want struct{ snp, tdx, legacy, reset bool }
	for version, w := range map[string]want{
		"7.2":  {},
		"10.0": {snp: true, legacy: true},
		"11.1": {snp: true, legacy: true, tdx: true, reset: true},
	} {
		t.Run(version, func(t *testing.T) {
			q, err := Probe(t.Context(), qemus.Version(t, version))
			if err != nil {
				t.Fatal(err)
			}
			got := want{
				q.HasObject("sev-snp-guest", "policy", "id-block", "host-data", "kernel-hashes"),
				q.HasObject("tdx-guest", "attributes", "mrconfigid", "quote-generation-socket"),
				q.HasObject("sev-guest", "legacy-vm-type"), q.HasFeature("tdx-guest", "confidential-guest-reset"),
			}
			if got != w || !strings.HasPrefix(q.Version, version) {
				t.Errorf("QEMU %s: %+v, want %+v", q.Version, got, w)
			}
			if !q.HasObject("sev-guest", "policy", "session-file", "cbitpos") || q.HasObject("sev-guest", "certs-path") || q.HasObject("mktme-guest") {
				t.Errorf("objects: %v", q.Objects["sev-guest"])
			}
			if !strings.HasPrefix(q.Machines["q35"], "pc-q35-"+version) || !q.HasMachine("smm") || q.HasMachine("nonsense") || len(q.CPUs) < 50 {
				t.Errorf("machines %v, %d CPUs", q.Machines, len(q.CPUs))
			}
		})
	}
}

func TestProbeFails(t *testing.T) {
	dir := t.TempDir()
	for name, script := range map[string]string{
		"silent": "exit 0", "loud": "echo out of order >&2; exit 1", "chatty": `printf '{"QMP": {"version"' >&3`,
	} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		_, err := Probe(t.Context(), file)
		if !errors.Is(err, ErrQEMU) || name == "loud" && !strings.Contains(err.Error(), "out of order") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Probe(t.Context(), filepath.Join(dir, "missing")); !errors.Is(err, ErrQEMU) {
		t.Errorf("missing: %v", err)
	}
}

// counter makes a QEMU that notes each time it is run.
func counter(t *testing.T) (program string, runs func() int) {
	dir := t.TempDir()
	program, log := filepath.Join(dir, "qemu"), filepath.Join(dir, "log")
	script := "#!/bin/sh\necho run >> " + log + "\nexec " + qemus.Newest(t) + " \"$@\"\n"
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, func() int {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "run")
	}
}

// TestCache: an answer holds until program, boot or KVM's parameters change.
func TestCache(t *testing.T) {
	program, runs := counter(t)
	root := recordOf(t, "milan-snp-on")
	c := Cache{Dir: filepath.Join(t.TempDir(), "cache"), Root: root}
	probe := func(want int, why string) {
		t.Helper()
		q, err := c.Probe(t.Context(), program)
		if err != nil || !q.HasObject("sev-guest") {
			t.Fatalf("%s: %+v, %v", why, q, err)
		}
		if got := runs(); got != want {
			t.Errorf("%s: QEMU was asked %d times, want %d", why, got, want)
		}
	}
	probe(1, "nothing is known")
	probe(1, "known")
	if q, err := c.Probe(t.Context(), program, "rng-random"); err != nil || !q.HasObject("rng-random", "filename") || runs() != 2 {
		t.Errorf("a type that was not asked for: %+v, %v, %d runs", q, err, runs())
	}
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	rewrite := func(b []byte) {
		t.Helper()
		if err := errors.Join(os.Remove(program), os.WriteFile(program, b, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	rewrite(b)
	probe(2, "the same content in a new file")
	probe(2, "and that is known now")
	rewrite(append(b, "# newer\n"...))
	probe(3, "another content")
	for file, why := range map[string]string{
		"proc/sys/kernel/random/boot_id":                        "another boot",
		"sys/module/kvm_amd/parameters/sev_snp":                 "another parameter",
		"sys/module/kvm_amd/parameters/ciphertext_hiding_asids": "one more parameter",
	} {
		was := runs()
		if err := root.write(file, []byte("changed")); err != nil {
			t.Fatal(err)
		}
		probe(was+1, why)
	}
	was := runs()
	for _, spoiled := range []string{"", "{", `{"schema": "vmlatch.qemu/3"}`, `{"schema": "other"}`} {
		if err := os.WriteFile(c.file(program), []byte(spoiled), 0o600); err != nil {
			t.Fatal(err)
		}
		was++
		probe(was, "spoiled: "+spoiled)
	}
	none := Cache{Dir: filepath.Join(program, "not-a-directory"), Root: root}
	if _, err := none.Probe(t.Context(), program); err != nil {
		t.Errorf("without a place for the cache: %v", err)
	}
}

// TestCacheTogether: many who need the same answer ask once.
func TestCacheTogether(t *testing.T) {
	program, runs := counter(t)
	c := Cache{Dir: t.TempDir()}
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Probe(t.Context(), program); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if runs() != 1 {
		t.Errorf("QEMU was asked %d times", runs())
	}
	left, _ := filepath.Glob(filepath.Join(c.Dir, ".qemu-*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// FuzzObjects: a schema is what a QEMU says, and a QEMU may say anything.
func FuzzObjects(f *testing.F) {
	f.Add(`{"name":"object-add","meta-type":"command","arg-type":"1"}`, `{"name":"1","meta-type":"object","variants":[{"case":"x","type":"2"}]}`, `{"name":"2","meta-type":"object","members":[{"name":"p"}],"features":["f",{}]}`)
	f.Add(`{"name":"object-add"}`, `[]`, `{"name":1}`)
	f.Fuzz(func(t *testing.T, a, b, c string) {
		objects, err := objectsOf([]json.RawMessage{json.RawMessage(a), json.RawMessage(b), json.RawMessage(c)})
		if err == nil && objects == nil {
			t.Error("no objects and no error")
		}
	})
}
