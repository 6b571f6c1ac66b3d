package plan

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/internal/seed"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Config is the table [config]: what configures a plain guest at its first boot. A confidential
// guest must not listen to it: it is the host's.
type Config struct {
	UserData      string            `toml:"user-data"` // files, for cloud-init (NoCloud)
	MetaData      string            `toml:"meta-data"`
	NetworkConfig string            `toml:"network-config"`
	Credentials   map[string]string `toml:"credentials"` // files by name, for systemd
}

// MaxConfig bounds each file of a configuration, in bytes.
const MaxConfig = 1 << 20

// maxCredential is the longest credential: systemd takes no more from SMBIOS, in bytes.
const maxCredential = 32 << 10

// MaxCredentials bounds all credentials together, in bytes as they stand in the tables: these have
// 64 KiB, with what else QEMU puts there.
const MaxCredentials = 56 << 10

// CredentialBytes is how much of the tables the credentials take. Files that cannot be read count
// for nothing: that is another check's matter.
func (c *Config) CredentialBytes() (n int64) {
	for name, file := range c.Credentials {
		if path, err := credential.Path(file); err == nil {
			if info, err := os.Stat(path); err == nil {
				n += int64(len("io.systemd.credential.binary:=\x00")+len(name)) + (info.Size()+2)/3*4
			}
		}
	}
	return n
}

// On reports whether there is a configuration.
func (c *Config) On() bool { return c.seeded() || len(c.Credentials) > 0 }

func (c *Config) seeded() bool { return c.UserData+c.MetaData+c.NetworkConfig != "" }

// files are the files of a seed, by their names in it.
func (c *Config) files() map[string]*string {
	return map[string]*string{
		seed.UserData: &c.UserData, seed.MetaData: &c.MetaData, seed.NetworkConfig: &c.NetworkConfig,
	}
}

func (c *Config) complete(g *Guest) error {
	if g.File.Has("config") && !c.On() {
		return g.File.Errorf("config", "is empty: it needs user-data, or credentials")
	}
	absolute := func(key string, name *string) error {
		path, err := credential.Path(*name)
		if err != nil {
			return g.File.Errorf("config."+key, "%v", err)
		}
		if path == *name {
			*name = g.File.Abs(*name)
		}
		return g.File.NoNUL(*name)
	}
	for key, name := range c.files() {
		if err := absolute(key, name); err != nil {
			return err
		}
	}
	for name, file := range c.Credentials {
		if !isCredentialName(name) {
			return g.File.Errorf(
				"config.credentials",
				"%q: must be letters, digits, dots, dashes and underscores",
				name,
			)
		}
		if err := absolute("credentials", &file); err != nil {
			return err
		}
		c.Credentials[name] = file
	}
	return nil
}

func isCredentialName(text string) bool {
	return text != "" && len(text) < 256 && text != "." && text != ".." && isSerial(text)
}

func (c *Config) build(b *Builder) error {
	if c.seeded() {
		c.buildSeed(b)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		file := c.Credentials[name]
		fd := b.Inherit("credential-"+name, "a credential for systemd, made of "+file,
			func(*Opening) (*os.File, error) {
				content, err := readConfig(file, maxCredential)
				if err != nil {
					return nil, err
				}
				defer clear(content)
				return seed.Credential(name, content)
			})
		// A path, and not the value: command lines are for everybody to read.
		b.Option("-smbios", argv.Key("type", "11").Set("path", fmt.Sprintf("/proc/self/fd/%d", fd)).String())
		b.File(file, "credential for systemd", false)
	}
	return nil
}

// buildSeed gives the guest a disk behind its own ones.
func (c *Config) buildSeed(b *Builder) {
	const id = "seed"
	filename := b.fdset(id, "a disk that configures the guest, made of the files of [config]", "seed of [config]",
		func(o *Opening) (*os.File, error) {
			files := map[string][]byte{seed.UserData: []byte("#cloud-config\n{}\n"), seed.MetaData: c.metaData(b)}
			for name, file := range c.files() {
				if *file == "" {
					continue
				}
				content, err := readConfig(*file, MaxConfig)
				if err != nil {
					return nil, err
				}
				files[name] = content
			}
			return seed.NoCloud(o.Dir.Path(rundir.SeedDir), files)
		})
	b.Option("-blockdev", argv.JSON(node{
		"driver": raw, "node-name": id, "read-only": true,
		"file": node{"driver": "file", "filename": filename, "read-only": true},
	}), "-device", argv.New("virtio-blk-pci").Set("drive", id).Set("id", "dev-"+id).Set("serial", "cidata").String())
	for _, name := range slices.Sorted(maps.Keys(c.files())) {
		if file := *c.files()[name]; file != "" {
			b.File(file, "configuration of the first boot", false)
		}
	}
}

// metaData names the guest, the same at each start: for cloud-init another name is another guest.
func (c *Config) metaData(b *Builder) []byte {
	sum := sha256.Sum256(fmt.Appendf(nil, "vmlatch instance v1\x00%s\x00%s", b.Facts.MachineID, b.Guest.Name))
	return fmt.Appendf(nil, "instance-id: \"%s-%x\"\nlocal-hostname: \"%s\"\n", b.Guest.Name, sum[:4],
		strings.ReplaceAll(b.Guest.Name, "_", "-"))
}

func readConfig(name string, limit int64) ([]byte, error) {
	file, err := credential.Path(name)
	if err != nil {
		return nil, err
	}
	return regular.Read(file, limit)
}
