package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/xdg"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

// HostConfig holds a host's own settings: /etc/vmlatch/host.toml for root,
// $XDG_CONFIG_HOME/vmlatch/host.toml for others.
type HostConfig struct {
	RunDir   string        `toml:"run-dir"   json:"run-dir"`
	StateDir string        `toml:"state-dir" json:"state-dir"`
	CacheDir string        `toml:"cache-dir" json:"cache-dir"`
	QEMU     string        `toml:"qemu"      json:"qemu"`
	Emulate  EmulateConfig `toml:"emulate"   json:"emulate"`
	// Slots limits the encryption slots of a pool (sev, sev-es, sev-snp, tdx) to
	// fewer than the hardware has.
	Slots map[string]int `toml:"slots"     json:"slots"`
	Logs  LogsConfig     `toml:"logs"      json:"logs"`

	file string
	set  map[string]bool
}

// LogsConfig bounds the logs of VMs.
type LogsConfig struct {
	Max    bytesize.Size `toml:"max"    json:"max"`    // of each log
	Keeper bool          `toml:"keeper" json:"keeper"` // a process for each VM makes that bound strict
}

// Bounds of [logs] max.
const (
	defaultLogMax = 16 << 20
	leastLogMax   = 64 << 10
)

// EmulateConfig says how --emulate runs QEMU.
type EmulateConfig struct {
	Swtee string   `toml:"swtee" json:"swtee"` // program
	Args  []string `toml:"args"  json:"args"`  // more options for it
}

// HostConfigFile is where the settings of the calling user are looked for.
func HostConfigFile() string {
	if os.Geteuid() == 0 {
		return "/etc/vmlatch/host.toml"
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "vmlatch/host.toml")
}

// LoadHost reads a host's settings; a file that does not exist means defaults, unless
// it was asked for by name. pools are the names that [slots] may have.
func LoadHost(file string, named bool, pools []string) (*HostConfig, error) {
	c := &HostConfig{file: file, set: map[string]bool{}}
	b, err := regular.Read(file, maxFile)
	if err != nil && (named || !errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	if err == nil {
		b, _, _ = plainText(b)
		if _, err := decodeStrict(b, file, c); err != nil {
			return nil, err
		}
	}
	return c, c.fill(pools)
}

// fill sets the defaults.
func (c *HostConfig) fill(pools []string) (err error) {
	for key, v := range map[string]string{
		"run-dir": c.RunDir, "state-dir": c.StateDir, "qemu": c.QEMU, "emulate.swtee": c.Emulate.Swtee,
	} {
		c.set[key] = v != ""
	}
	if c.RunDir == "" {
		c.RunDir = defaultRunDir()
	}
	if c.StateDir == "" {
		if c.StateDir, err = defaultStateDir(); err != nil {
			return err
		}
	}
	if c.CacheDir == "" {
		c.CacheDir = defaultCacheDir()
	}
	if c.QEMU == "" {
		c.QEMU = "qemu-system-x86_64"
	}
	if c.Emulate.Swtee == "" {
		c.Emulate.Swtee = "swtee"
	}
	if c.Logs.Max == 0 {
		c.Logs.Max = defaultLogMax
	}
	if c.Logs.Max < leastLogMax {
		return &fault.Error{
			Kind: fault.Spec, File: c.file, Key: "logs.max",
			Err: fmt.Errorf("%v: must be at least %v", c.Logs.Max, bytesize.Size(leastLogMax)),
		}
	}
	for pool, n := range c.Slots {
		e := &fault.Error{Kind: fault.Spec, File: c.file, Key: "slots." + pool}
		if !slices.Contains(pools, pool) {
			e.Err = fmt.Errorf("unknown pool; the pools are %s", strings.Join(pools, ", "))
			e.Fix = nearest.Hint(pool, pools)
			return e
		}
		if n < 0 {
			e.Err = fmt.Errorf("%d: must not be negative", n)
			return e
		}
	}
	return nil
}

func defaultRunDir() string {
	if os.Geteuid() == 0 {
		return "/run/vmlatch"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vmlatch")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("vmlatch-%d", os.Geteuid()))
}

func defaultStateDir() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/vmlatch", nil
	}
	dir, err := xdg.StateDir()
	if err != nil {
		return "", fmt.Errorf("no place for logs: %w; set state-dir in host.toml", err)
	}
	return filepath.Join(dir, "vmlatch"), nil
}

// defaultCacheDir may be "": then nothing is cached.
func defaultCacheDir() string {
	if os.Geteuid() == 0 {
		return "/var/cache/vmlatch"
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "vmlatch")
}

// MakeAbsolute makes the directories absolute: QEMU's working directory differs.
func (c *HostConfig) MakeAbsolute() (err error) {
	for _, dir := range []*string{&c.RunDir, &c.StateDir} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return err
		}
	}
	if strings.HasPrefix(c.StateDir+"/", c.RunDir+"/") {
		return fmt.Errorf("state-dir %s lies in run-dir %s, where each directory is a running VM's", c.StateDir,
			c.RunDir)
	}
	return nil
}

// slotDir is the directory of leases in the run directory; no VM can have its name.
const slotDir = ".slots"

// SlotDir is where leases on encryption slots lie.
func (c *HostConfig) SlotDir() string { return filepath.Join(c.RunDir, slotDir) }

// Root is where this host's VMs live.
func (c *HostConfig) Root() rundir.Root {
	return rundir.Root{Run: c.RunDir, State: c.StateDir, LogMax: int64(c.Logs.Max)}
}

// From tells where a setting came from: host.toml or a default.
func (c *HostConfig) From(key string) string {
	if c.set[key] {
		return c.file
	}
	return "default"
}
