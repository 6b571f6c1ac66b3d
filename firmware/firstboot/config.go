package firstboot

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/firmware/newc"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

// ErrConfig means that a configuration makes no sense.
var ErrConfig = errors.New("configuration")

// Config names the files of a configuration: the table [config] of a VM's spec.
type Config struct {
	UserData      string            `toml:"user-data"      json:"user-data,omitempty"` // for cloud-init
	MetaData      string            `toml:"meta-data"      json:"meta-data,omitempty"`
	NetworkConfig string            `toml:"network-config" json:"network-config,omitempty"`
	Credentials   map[string]string `toml:"credentials"    json:"credentials,omitempty"` // for systemd, by name
}

// Names of the files of a seed for cloud-init.
const (
	UserData      = "user-data"
	MetaData      = "meta-data"
	NetworkConfig = "network-config"
)

// MaxFile bounds each file of a configuration, in bytes.
const MaxFile = 1 << 20

// NoUserData is the user data of a seed that has none of its own: cloud-init takes no seed without.
const NoUserData = "#cloud-config\n{}\n"

// Seed returns the files of a seed by their names in it; "" for one that is not there.
func (c *Config) Seed() map[string]*string {
	return map[string]*string{UserData: &c.UserData, MetaData: &c.MetaData, NetworkConfig: &c.NetworkConfig}
}

// Seeded reports whether there is a seed for cloud-init.
func (c *Config) Seeded() bool { return c.UserData+c.MetaData+c.NetworkConfig != "" }

// On reports whether there is a configuration at all.
func (c *Config) On() bool { return c.Seeded() || len(c.Credentials) > 0 }

// Resolve checks the names, and gives each file's name to absolute, which returns the one to use.
// An error is of a key of the table.
func (c *Config) Resolve(absolute func(string) string) (key string, err error) {
	resolve := func(name string) (string, error) {
		path, err := credential.Path(name)
		if path == "" || path != name { // none, or a credential of a service
			return name, err
		}
		return absolute(path), err
	}
	seed := c.Seed()
	for _, key := range slices.Sorted(maps.Keys(seed)) {
		if *seed[key], err = resolve(*seed[key]); err != nil {
			return key, err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		if !isName(name) {
			err = fmt.Errorf("%q: must be letters, digits, dots, dashes and underscores", name)
		} else if c.Credentials[name] == "" {
			err = fmt.Errorf("%s names no file", name)
		} else {
			c.Credentials[name], err = resolve(c.Credentials[name])
		}
		if err != nil {
			return "credentials", err
		}
	}
	return "", nil
}

// isName reports whether a text can name a credential (systemd, src/basic/fileio.c,
// credential_name_valid; fewer characters, so that none needs quoting anywhere).
func isName(text string) bool {
	const characters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-"
	return text != "" && len(text) < 256 && text != "." && text != ".." && strings.Trim(text, characters) == ""
}

// Load reads the table [config] of a file, such as a VM's spec: other tables are of no interest.
// Paths in it begin at its directory. Nothing that it names is read yet.
func Load(name string) (*Config, error) {
	const maxSize = 1 << 20
	b, err := regular.Read(name, maxSize)
	if err != nil {
		return nil, err
	}
	c, err := parse(b, filepath.Dir(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", name, ErrConfig, err)
	}
	return c, nil
}

func parse(b []byte, dir string) (*Config, error) {
	var file struct {
		Config map[string]any `toml:"config"`
	}
	if err := toml.Unmarshal(bytes.TrimPrefix(b, []byte("\uFEFF")), &file); err != nil {
		return nil, err
	}
	c := &Config{}
	table, err := toml.Marshal(file.Config)
	if err == nil {
		err = toml.NewDecoder(bytes.NewReader(table)).DisallowUnknownFields().Decode(c)
	}
	var unknown *toml.StrictMissingError
	var kind *toml.DecodeError
	switch {
	case errors.As(err, &unknown) && len(unknown.Errors) > 0:
		err = fmt.Errorf("unknown key %s", strings.Join(unknown.Errors[0].Key(), "."))
	case errors.As(err, &kind):
		err = fmt.Errorf("%s: the value is not of the kind that belongs there", strings.Join(kind.Key(), "."))
	case err == nil && !c.On():
		err = errors.New("there is no table [config] with user-data or credentials")
	case err == nil:
		var key string
		key, err = c.Resolve(func(path string) string {
			if filepath.IsAbs(path) {
				return path
			}
			return filepath.Join(dir, path)
		})
		if err != nil {
			err = fmt.Errorf("%s: %w", key, err)
		}
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// GuestSeed is where latchguest's hook puts the seed in the guest.
const GuestSeed = "/run/vmlatch/seed"

// Named reports whether a kernel's command line has cloud-init look for its seed there (NoCloud:
// ds= with s or seedfrom).
func Named(cmdline string) bool {
	for word := range strings.FieldsSeq(cmdline) {
		settings, ok := strings.CutPrefix(strings.ReplaceAll(word, `"`, ""), "ds=nocloud;")
		if !ok {
			continue
		}
		for setting := range strings.SplitSeq(settings, ";") {
			key, value, _ := strings.Cut(setting, "=")
			if (key == "s" || key == "seedfrom") &&
				strings.TrimSuffix(strings.TrimPrefix(value, "file://"), "/") == GuestSeed {
				return true
			}
		}
	}
	return false
}

// Content is a configuration that was read: each file's bytes, by its path in the archive.
type Content map[string][]byte

// Directories of the archive.
const (
	top            = "vmlatch"
	seedDir        = top + "/seed/"
	credentialsDir = top + "/credentials/"
)

// Read reads the files.
func (c *Config) Read() (Content, error) {
	all := Content{}
	read := func(to, name string) error {
		path, err := credential.Path(name)
		if err == nil {
			all[to], err = regular.Read(path, MaxFile)
		}
		return err
	}
	for name, file := range c.Seed() {
		if *file == "" {
			continue
		}
		if err := read(seedDir+name, *file); err != nil {
			return nil, err
		}
	}
	for name, file := range c.Credentials {
		if err := read(credentialsDir+name, file); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// seeded reports whether there is a seed.
func (c Content) seeded() bool {
	for name := range c {
		if strings.HasPrefix(name, seedDir) {
			return true
		}
	}
	return false
}

// whole is the content with what a seed must have. An instance that has another seed is another
// instance: cloud-init configures it anew.
func (c Content) whole() Content {
	if !c.seeded() {
		return c
	}
	all := maps.Clone(c)
	if _, ok := all[seedDir+UserData]; !ok {
		all[seedDir+UserData] = []byte(NoUserData)
	}
	if _, ok := all[seedDir+MetaData]; !ok {
		h := sha256.New()
		for _, name := range []string{NetworkConfig, UserData} {
			sum := sha256.Sum256(all[seedDir+name])
			h.Write(sum[:])
		}
		all[seedDir+MetaData] = fmt.Appendf(nil, "instance-id: \"vmlatch-%x\"\n", h.Sum(nil)[:8])
	}
	return all
}

// align is what the archive's length is a multiple of, in bytes.
const align = 512

// Archive is what stands before the initrd; nil without a configuration.
func (c Content) Archive() []byte {
	if len(c) == 0 {
		return nil
	}
	all := c.whole()
	files := []newc.File{{Name: top, Mode: newc.ModeDir}}
	dir := ""
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if d := filepath.Dir(name); d != dir {
			dir = d
			files = append(files, newc.File{Name: dir, Mode: newc.ModeDir})
		}
		files = append(files, newc.File{Name: name, Mode: newc.ModePrivate, Data: all[name]})
	}
	var b bytes.Buffer
	if err := newc.Write(&b, files); err != nil {
		panic(err) // a buffer takes all, and the names are clean
	}
	return append(b.Bytes(), make([]byte, (align-b.Len()%align)%align)...)
}
