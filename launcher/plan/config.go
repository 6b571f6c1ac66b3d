package plan

import (
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/internal/seed"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// Config is the table [config]: what configures a guest at its first boot. A plain guest gets a
// disk and tables, which are the host's; a confidential one must not listen to these, and gets what
// is measured with its initrd (package firstboot).
type Config firstboot.Config

func (c *Config) files() *firstboot.Config { return (*firstboot.Config)(c) }

// maxCredential is the longest credential: systemd takes no more from SMBIOS, in bytes.
const maxCredential = 32 << 10

// MaxCredentials bounds all credentials together, in bytes as they stand in the tables: these have
// 64 KiB, with what else QEMU puts there.
const MaxCredentials = 56 << 10

// MaxMeasuredCredentials bounds those that stand before an initrd, in the same bytes, which are
// more than systemd counts (src/shared/creds-util.h, CREDENTIALS_TOTAL_SIZE_MAX).
const MaxMeasuredCredentials = 1 << 20

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
func (c *Config) On() bool { return c.files().On() }

// Seeded reports whether there is a seed for cloud-init.
func (c *Config) Seeded() bool { return c.files().Seeded() }

// ConfigMeasured reports whether the configuration is measured with the initrd, as far as the guest
// has one.
func (g *Guest) ConfigMeasured(t Traits) bool {
	return g.Config.On() && t.Confidential && g.Kernel.Initrd != "" && (g.KernelHashes || t.KernelBy != "")
}

func (c *Config) complete(g *Guest) error {
	if g.File.Has("config") && !c.On() {
		return g.File.Errorf("config", "is empty: it needs user-data, or credentials")
	}
	if key, err := c.files().Resolve(g.File.Abs); err != nil {
		return g.File.Errorf("config."+key, "%v", err)
	}
	for _, name := range c.files().Seed() {
		if err := g.File.NoNUL(*name); err != nil {
			return err
		}
	}
	return g.File.NoNUL(slices.Collect(maps.Values(c.Credentials))...)
}

func (c *Config) build(b *Builder) error {
	if b.Guest.ConfigMeasured(b.Traits) {
		c.eachFile(func(file, use string) { b.File(file, use, true) })
		return nil
	}
	c.eachFile(func(file, use string) { b.File(file, use, false) })
	if c.Seeded() {
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
	}
	return nil
}

// buildSeed gives the guest a disk behind its own ones.
func (c *Config) buildSeed(b *Builder) {
	const id = "seed"
	filename := b.fdset(id, "a disk that configures the guest, made of the files of [config]", "seed of [config]",
		func(o *Opening) (*os.File, error) {
			files := map[string][]byte{
				firstboot.UserData: []byte(firstboot.NoUserData), firstboot.MetaData: c.metaData(b),
			}
			for name, file := range c.files().Seed() {
				if *file == "" {
					continue
				}
				content, err := readConfig(*file, firstboot.MaxFile)
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
}

// eachFile calls a function with every file, in an order, and what it is for.
func (c *Config) eachFile(do func(file, use string)) {
	files := c.files().Seed()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if file := *files[name]; file != "" {
			do(file, "configuration of the first boot")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Credentials)) {
		do(c.Credentials[name], "credential for systemd")
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
