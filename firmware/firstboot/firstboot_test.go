package firstboot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// write writes files of a test into a directory.
func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// read loads a table [config] and what it names.
func read(t *testing.T, table string) (Content, error) {
	t.Helper()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"vm.toml": "name = \"a\"\n[config]\n" + table, "u": "#cloud-config\n", "m": "instance-id: x\n",
		"n": "version: 2\n", "c": "secret", "large": strings.Repeat("x", MaxFile+1),
	})
	c, err := Load(filepath.Join(dir, "vm.toml"))
	if err != nil {
		return nil, err
	}
	return c.Read()
}

// TestArchive: the bytes are those that owners have predicted from, and Linux unpacks them.
func TestArchive(t *testing.T) {
	for name, tt := range map[string]struct {
		table string
		sum   string // SHA-256 of vmlatch.config/1, which never changes
		files map[string]string
	}{
		"whole": {
			"user-data = \"u\"\nmeta-data = \"m\"\nnetwork-config = \"n\"\ncredentials = { b = \"c\", a = \"c\" }\n",
			"54120e294832876c6b34abd1d016b785b81411d4765bf6fbf7eb00d5a00692b3",
			map[string]string{
				"vmlatch/seed/user-data": "#cloud-config\n", "vmlatch/seed/meta-data": "instance-id: x\n",
				"vmlatch/seed/network-config": "version: 2\n", "vmlatch/credentials/a": "secret",
				"vmlatch/credentials/b": "secret",
			},
		},
		"user data alone": {
			"user-data = \"u\"\n", "0beb2c5df991139e265d7731c634f1e0e74046841def27a853b47fb1bcc59c63",
			map[string]string{
				"vmlatch/seed/user-data": "#cloud-config\n",
				"vmlatch/seed/meta-data": "instance-id: \"vmlatch-5ff165fd46808893\"\n",
			},
		},
		"network alone": {
			"network-config = \"n\"\n", "5ec5246dc51f1ec0ce45dfe93cd4b191fa8bb44d97ef5c5d398e60cf65640785",
			map[string]string{
				"vmlatch/seed/user-data":      NoUserData,
				"vmlatch/seed/network-config": "version: 2\n",
				"vmlatch/seed/meta-data":      "instance-id: \"vmlatch-65c9064e0f3c19e5\"\n",
			},
		},
		"credentials alone": {
			"credentials = { a = \"c\" }\n", "03b8e858fa05b523366acac6eb5f8c981f525bcbad23c0b82b2316484ef2a552",
			map[string]string{"vmlatch/credentials/a": "secret"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			content, err := read(t, tt.table)
			if err != nil {
				t.Fatal(err)
			}
			b := content.Archive()
			if got := sha256.Sum256(b); tt.sum != fmt.Sprintf("%x", got) {
				t.Errorf("sha256 %x, want %s", got, tt.sum)
			}
			if len(b)%512 != 0 || !bytes.Equal(b, content.Archive()) {
				t.Errorf("%d bytes, twice the same: %v", len(b), bytes.Equal(b, content.Archive()))
			}
			unpacks(t, b, tt.files)
		})
	}
	if b := (Content{}).Archive(); b != nil {
		t.Errorf("nothing makes %d bytes", len(b))
	}
}

// unpacks reads an archive as Linux does.
func unpacks(t *testing.T, archive []byte, want map[string]string) {
	t.Helper()
	got := map[string]string{}
	for b := archive; ; {
		var f struct{ Ino, Mode, UID, GID, Links, Time, Size, Major, Minor, RMajor, RMinor, Name, Check uint32 }
		var magic uint32
		_, err := fmt.Sscanf(string(b[:min(110, len(b))]), "%6x"+strings.Repeat("%8x", 13), &magic, &f.Ino, &f.Mode,
			&f.UID, &f.GID, &f.Links, &f.Time, &f.Size, &f.Major, &f.Minor, &f.RMajor, &f.RMinor, &f.Name, &f.Check)
		if err != nil || magic != 0x070701 {
			t.Fatalf("%d bytes before the end: %#x, %v", len(b), magic, err)
		}
		name := string(b[110 : 110+f.Name-1])
		data := b[(110+f.Name+3)&^3:]
		if name == "TRAILER!!!" {
			if rest := bytes.Trim(data, "\x00"); len(rest) > 0 {
				t.Errorf("%q is behind the archive", rest)
			}
			break
		}
		b = data[(f.Size+3)&^3:]
		switch {
		case f.UID+f.GID+f.Time+f.Major+f.Minor+f.RMajor+f.RMinor+f.Check != 0 || f.Links != 1 || f.Ino == 0:
			t.Errorf("%s: %+v", name, f)
		case f.Mode == 0o100400:
			got[name] = string(data[:f.Size])
		case f.Mode != 0o40755:
			t.Errorf("%s: mode %o", name, f.Mode)
		}
	}
	if !maps.Equal(got, want) {
		t.Errorf("it unpacks to %q, want %q", got, want)
	}
}

// TestRefused: what makes no configuration is said.
func TestRefused(t *testing.T) {
	for table, want := range map[string]string{
		"":                                         "no table [config] with user-data",
		"user-dat = \"u\"\n":                       "unknown key user-dat",
		"user-data = 5\n":                          "user-data",
		"user-data = \"missing\"\n":                "no such file",
		"user-data = \"large\"\n":                  "large",
		"user-data = \"credential:x\"\n":           "credentials",
		"credentials = { \"a/b\" = \"c\" }":        "must be letters",
		"credentials = { \"..\" = \"c\" }":         "must be letters",
		"credentials = { a = \"\" }":               "names no file",
		"user-data = \"u\"\nuser-data = \"u\"":     "user-data",
		"files = { a = \"b\" }\nuser-data = \"u\"": "unknown key files",
	} {
		if _, err := read(t, table); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", table, err, want)
		}
	}
	if _, err := Load(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestNamed: only what has cloud-init read the measured seed counts.
func TestNamed(t *testing.T) {
	for line, want := range map[string]bool{
		"quiet ds=nocloud;s=file:///run/vmlatch/seed/ panic=-1": true,
		`ds="nocloud;s=/run/vmlatch/seed/"`:                     true,
		"ds=nocloud;h=host;seedfrom=file:///run/vmlatch/seed":   true,
		"ds=nocloud;s=http://host/":                             false,
		"ds=nocloud":                                            false,
		"xds=nocloud;s=file:///run/vmlatch/seed/":               false,
		"": false,
	} {
		if got := Named(line); got != want {
			t.Errorf("%q: %v, want %v", line, got, want)
		}
	}
}

// TestInitrd: the archive stands before the file, and hashes see both.
func TestInitrd(t *testing.T) {
	file := filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(file, []byte("initrd"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		Initrd
		want string
	}{
		{Initrd{File: file}, "initrd"},
		{Initrd{File: file, Config: []byte("config ")}, "config initrd"},
		{Initrd{Config: []byte("config ")}, ""},
	} {
		var b bytes.Buffer
		n, err := tt.WriteTo(&b)
		if err != nil || b.String() != tt.want || n != int64(len(tt.want)) {
			t.Errorf("%d bytes %q, %v, want %q", n, &b, err, tt.want)
		}
		if size, err := tt.Size(); tt.File != "" && (err != nil || size != n) {
			t.Errorf("%d bytes, %v, want %d", size, err, n)
		}
	}
	if _, err := (Initrd{File: file + "x"}).WriteTo(&bytes.Buffer{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// TestOthers: each difference by one thing is named, none is the owner's own, and there is a bound.
func TestOthers(t *testing.T) {
	content, err := read(t, "user-data = \"u\"\ncredentials = { a = \"c\" }\n")
	if err != nil {
		t.Fatal(err)
	}
	says := func(list []Other) (out []string) {
		for _, o := range list {
			if bytes.Equal(o.Config, content.Archive()) || o.File != "initrd" {
				t.Errorf("%q is the owner's own, or of %q", o.Say, o.File)
			}
			out = append(out, o.Say)
		}
		return out
	}
	want := []string{
		"none was loaded", "it lacks a", "it lacks user-data", "a is old", "user-data is old", "meta-data is old",
		"network-config is old",
	}
	if got := says(content.Others("initrd", map[string][]byte{"old": []byte("x")})); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	want = []string{"user-data is old", "meta-data is old", "network-config is old"}
	if got := says(Content(nil).Others("initrd", map[string][]byte{"old": []byte("x")})); !slices.Equal(got, want) {
		t.Errorf("without a configuration: %q, want %q", got, want)
	}
	many := map[string][]byte{}
	for i := range 100 {
		many[strings.Repeat("x", i)] = []byte{byte(i)}
	}
	if got := len(content.Others("initrd", many)); got != maxOthers {
		t.Errorf("%d, want %d", got, maxOthers)
	}
}

// FuzzParse: what is read is a configuration that can be resolved again, whatever the file says.
func FuzzParse(f *testing.F) {
	f.Add([]byte("[config]\nuser-data = \"u\"\ncredentials = { a = \"c\" }\n"))
	f.Add([]byte("config.credentials.\"a.b\" = \"credential:x\"\n[kernel]\nimage = 5\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parse(b, "/dir")
		if err != nil {
			return
		}
		if _, err := c.Resolve(func(path string) string { return path }); err != nil || !c.On() {
			t.Errorf("%+v: %v", c, err)
		}
	})
}
