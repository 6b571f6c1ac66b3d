package main

import (
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

func newHost(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:     "host",
		Usage:    "show what this host can do: technologies, slots, QEMU and firmware",
		Category: catHost,
		Description: `Formats: text, json, nfd (a feature file for Kubernetes' Node Feature Discovery)
and nomad (the meta block of a Nomad client's configuration). A feature file counts
for ten minutes, so that a host which has gone is not taken for a good one: write
it from a timer.

What this user cannot read, such as MSRs or the kernel's log, is "unknown". A
record of a host (--record) can be looked at elsewhere (--root): it holds
CPUID and MSRs, settings of KVM and the IOMMU, slot counts, firmware descriptors and
the kernel's lines about SEV and TDX; no keys and no names of VMs.

Examples:

   vmlatch host
   vmlatch host --format nfd --output /etc/kubernetes/node-feature-discovery/features.d/vmlatch
   vmlatch host --record ./my-host`,
		Flags: hostFlags(
			&urfave.StringFlag{Name: "format", Value: "text", Usage: "`FORMAT` text, json, nfd or nomad"},
			&urfave.BoolFlag{Name: "json", Usage: "the same as --format json"},
			&urfave.StringFlag{Name: "output", Value: "-", Usage: "write to `FILE`, which appears whole"},
			&urfave.StringFlag{Name: "root", Usage: "look at the host whose record is in `DIR`"},
			&urfave.StringFlag{Name: "record", Usage: "write a record of this host into the new directory `DIR`"}),
		Action: func(c *urfave.Context) error {
			if _, err := cli.Args(c); err != nil {
				return err
			}
			return runHost(c, s)
		},
	}
}

// detect looks at this host, or at a record.
func detect(root string) (*host.Report, error) {
	if root == "" {
		root = "/"
	}
	rep, err := host.Detect(host.Root(root))
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("look at the host: %w", err), fault.FixRecord)
	}
	return rep, nil
}

// hostInfo is what the command shows: the host, its QEMU and its firmware.
type hostInfo struct {
	*host.Report
	Slots    []launcher.SlotUse `json:"slots"`
	QEMU     *qemuInfo          `json:"qemu,omitempty"`
	Firmware []ovmf.Descriptor  `json:"firmware"`
	// AmdSev is an image that checks a measured kernel; "" if none was found.
	AmdSev string `json:"amdsev-firmware,omitempty"`
}

// amdSevPlaces are where distributions put an AmdSev build, besides what descriptors name.
var amdSevPlaces = []string{
	"/usr/share/ovmf/OVMF.amdsev.fd", "/usr/share/edk2/ovmf/OVMF.amdsev.fd", "/usr/share/OVMF/OVMF.amdsev.fd",
}

// findAmdSev looks for firmware with an area for kernel hashes.
func findAmdSev(found []ovmf.Descriptor) string {
	places := amdSevPlaces
	for _, d := range found {
		places = append([]string{d.Image}, places...)
	}
	for _, image := range places {
		if i := tee.ReadImage(image); i != nil && i.HashArea {
			return image
		}
	}
	return ""
}

type qemuInfo struct {
	Path    string   `json:"path"`
	Version string   `json:"version,omitempty"`
	Objects []string `json:"confidential-objects,omitempty"`
	Error   string   `json:"error,omitempty"`
}

func runHost(c *urfave.Context, s *cli.IO) error {
	for _, name := range []string{"record", "root"} {
		if c.IsSet(name) && c.String(name) == "" {
			return cli.Usagef("--%s: names no directory", name)
		}
	}
	if c.Bool("json") && c.IsSet("format") && c.String("format") != "json" {
		return cli.Usagef("--json and --format %s exclude each other", c.String("format"))
	}
	if dir := c.String("record"); dir != "" {
		if err := host.Root("/").Record(dir); err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("record: %w", err))
		}
		s.Say("recorded into %s", dir)
		return nil
	}
	format := c.String("format")
	if c.Bool("json") {
		format = "json"
	}
	write, ok := hostFormats[format]
	if !ok {
		return cli.Usagef("--format %s: must be text, json, nfd or nomad", format)
	}
	info, err := gatherHost(c)
	if err != nil {
		return err
	}
	out, err := s.PrepareOutput(c.String("output"), 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	var b strings.Builder
	if err := write(&b, info); err != nil {
		return err
	}
	return out.Commit([]byte(b.String()))
}

func gatherHost(c *urfave.Context) (*hostInfo, error) {
	h, err := hostConfig(c)
	if err != nil {
		return nil, err
	}
	h = ownCache(h)
	rep, err := detect(c.String("root"))
	if err != nil {
		return nil, err
	}
	root := host.Root("/")
	if dir := c.String("root"); dir != "" {
		root = host.Root(dir)
	}
	info := &hostInfo{Report: rep, Firmware: []ovmf.Descriptor{}}
	if found := root.Firmware(); found != nil {
		info.Firmware = found
	}
	facts := &plan.Facts{Host: rep, Slots: h.Slots, SlotDir: h.SlotDir()}
	if info.Slots, err = launcher.SlotUses(facts); err != nil {
		return nil, err
	}
	if c.String("root") != "" {
		return info, nil // a record has no QEMU to ask, and no images
	}
	info.AmdSev = findAmdSev(info.Firmware)
	info.QEMU = &qemuInfo{Path: h.QEMU}
	if path, err := exec.LookPath(h.QEMU); err != nil {
		info.QEMU.Error = err.Error()
	} else if path, err = filepath.Abs(path); err != nil {
		return nil, err
	} else if q, err := (host.Cache{Dir: h.CacheDir}).Probe(c.Context, path); err != nil {
		info.QEMU.Error = err.Error()
	} else {
		info.QEMU.Path, info.QEMU.Version = path, q.Version
		for _, o := range append(tee.Objects(), "igvm-cfg") {
			if q.HasObject(o) {
				info.QEMU.Objects = append(info.QEMU.Objects, o)
			}
		}
	}
	return info, nil
}

var hostFormats = map[string]func(io.Writer, *hostInfo) error{
	"text": hostText, "json": hostJSON, "nfd": hostNFD, "nomad": hostNomad,
}

func hostJSON(w io.Writer, i *hostInfo) error { return (&cli.IO{Out: w}).JSON(i) }

func hostText(w io.Writer, i *hostInfo) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(t, "%s\t%s\n", key, cli.Escape(fmt.Sprintf(format, args...)))
	}
	row("processor", "%s", i.CPU.Name)
	row("kernel", "%s", i.Kernel)
	row("KVM", "%s", withReason(i.KVM))
	for _, tech := range i.Technologies {
		row(tech.Name, "%s", withReason(tech))
	}
	for _, p := range i.Slots {
		if p.Limit < 0 {
			row("slots "+p.Name, "%s in use, for %s (%s)", count(p.Used), strings.Join(p.Technologies, " and "), p.From)
			continue
		}
		if p.AtLeast || p.InUse < 0 && !strings.HasPrefix(p.Name, "emulated-") {
			row("slots "+p.Name, "at least %s in use of %s, for %s (%s)", count(p.Used), count(p.Limit),
				strings.Join(p.Technologies, " and "), p.From)
			continue
		}
		row("slots "+p.Name, "%s in use of %s, for %s (%s)", count(p.Used), count(p.Limit),
			strings.Join(p.Technologies, " and "), p.From)
	}
	if q := i.QEMU; q != nil {
		switch {
		case q.Error != "":
			row("QEMU", "%s: %s", q.Path, q.Error)
		case len(q.Objects) == 0:
			row("QEMU", "%s %s, without confidential objects", q.Path, q.Version)
		default:
			row("QEMU", "%s %s, with %s", q.Path, q.Version, strings.Join(q.Objects, ", "))
		}
	}
	for _, d := range i.Firmware {
		row("firmware", "%s (%s)", d.Image, strings.Join(d.Features, ", "))
	}
	switch {
	case i.AmdSev != "":
		row("measured kernel", "with %s", i.AmdSev)
	case i.QEMU != nil:
		row("measured kernel", "no firmware for one was found: %s", fault.FixAmdSev)
	}
	return t.Flush()
}

func withReason(t host.Technology) string {
	if t.Why == "" {
		return string(t.Usable)
	}
	return string(t.Usable) + ": " + t.Why
}

// placement are the facts that a scheduler places VMs by.
func (i *hostInfo) placement() [][2]string {
	facts := [][2]string{{"kvm", string(i.KVM.Usable)}}
	for _, t := range i.Technologies {
		facts = append(facts, [2]string{t.Name, string(t.Usable)})
	}
	for _, p := range i.Slots {
		if p.Limit >= 0 && !strings.HasPrefix(p.Name, "emulated-") {
			facts = append(facts, [2]string{"slots." + p.Name + ".total", strconv.Itoa(p.Limit)})
			if p.Free >= 0 {
				facts = append(facts, [2]string{"slots." + p.Name + ".free", strconv.Itoa(p.Free)})
			}
		}
	}
	if s := i.SEV; s != nil && s.SNPAPI != "" {
		facts = append(facts, [2]string{"sev-snp.api", s.SNPAPI})
	}
	if q := i.QEMU; q != nil && q.Version != "" {
		facts = append(facts, [2]string{"qemu.version", q.Version})
	}
	return facts
}

// nfdExpiry is how long a feature file counts: slots change, and a host that
// stopped writing it has perhaps stopped working.
const nfdExpiry = 10 * time.Minute

// hostNFD writes a feature file (Node Feature Discovery, customization guide,
// local feature source).
func hostNFD(w io.Writer, i *hostInfo) error {
	fmt.Fprintf(w, "# +expiry-time=%s\n", time.Now().UTC().Add(nfdExpiry).Format(time.RFC3339))
	for _, f := range i.placement() {
		fmt.Fprintf(w, "vmlatch.io/%s=%s\n", f[0], f[1])
	}
	return nil
}

// hostNomad writes a meta block (Nomad, agent configuration, client, meta).
func hostNomad(w io.Writer, i *hostInfo) error {
	fmt.Fprintln(w, "client {\n  meta {")
	for _, f := range i.placement() {
		fmt.Fprintf(w, "    %q = %q\n", "vmlatch."+f[0], f[1])
	}
	fmt.Fprintln(w, "  }\n}")
	return nil
}
