package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/igvm"
	"github.com/vmlatch/vmlatch/firmware/nearest"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx"
)

// technologyTDX is the technology that package launch does not know.
const technologyTDX = "tdx"

var technologies = []string{string(launch.SEV), string(launch.SEVES), string(launch.SNP), technologyTDX}

// tdxOrders are the values of --tdx-order: each page is added and extended before the
// next, or all pages are added first.
var tdxOrders = []string{"page", "two-pass"}

// inputFlags name what a launch digest covers.
func inputFlags(more ...urfave.Flag) []urfave.Flag {
	return append(more,
		&urfave.StringFlag{Name: "firmware", Usage: "firmware image `FILE`"},
		&urfave.StringFlag{Name: "kernel", Usage: "kernel `FILE`, if the host measures it (kernel-hashes)"},
		&urfave.StringFlag{Name: "initrd", Usage: "initrd `FILE`"},
		&urfave.StringFlag{
			Name: "config",
			Usage: "`FILE` with a table [config], such as the VM's spec: what configures the guest at its first" +
				" boot, and is measured with the initrd",
		},
		&urfave.StringFlag{Name: "cmdline", Usage: "kernel command `LINE`, exactly"},
		&urfave.IntFlag{Name: "vcpus", Value: 1, Usage: "`NUMBER` of virtual CPUs (SEV-ES, SEV-SNP)"},
		&urfave.StringFlag{Name: "cpu", Usage: "CPU `MODEL` of QEMU, such as EPYC-Milan (SEV-ES, SEV-SNP)"},
		&urfave.StringFlag{Name: "cpu-signature", Usage: "CPUID Fn1 EAX as a `NUMBER`, instead of --cpu"},
		&urfave.StringFlag{
			Name: "vmsa", Value: launch.INIT2.String(),
			Usage: "how registers were set up, `PROFILE` " + strings.Join(launch.Profiles(), ", "),
		},
		&urfave.StringFlag{
			Name:  "features",
			Usage: "sev_features as a `NUMBER` (default 0x1 for SEV-SNP, 0 for SEV-ES)",
		},
		&urfave.StringFlag{
			Name: "vmm", Value: launch.QEMU.String(),
			Usage: "the `VMM` that launches: " + strings.Join(launch.VMMs(), ", "),
		},
	)
}

// predictFlags are for predictions without a session.
func predictFlags(more ...urfave.Flag) []urfave.Flag {
	return inputFlags(append(more,
		&urfave.StringFlag{
			Name: "technology", Value: string(launch.SEV),
			Usage: "`TECHNOLOGY` of the launch: " + nearest.List(technologies),
		},
		&urfave.StringFlag{
			Name:  "svsm",
			Usage: "SVSM image `FILE` that starts before the firmware (SEV-SNP, layout before IGVM)",
		},
		&urfave.IntFlag{Name: "vars-size", Usage: "`BYTES` of the variable store, which moves the SVSM"},
		&urfave.StringFlag{
			Name: "gce-machine",
			Usage: "machine `TYPE`, such as c3-standard-4, of Google's older TDX hypervisor: " +
				"it measured the TD HOB too",
		},
		&urfave.StringFlag{
			Name: "tdx-order", Value: tdxOrders[0],
			Usage: "`ORDER` of TDX pages: page (Linux), or two-pass (before TDX was in Linux)",
		},
	)...)
}

// inputs are the owner's own copies of what the guest should contain.
type inputs struct {
	launch.Inputs
	image *ovmf.Image
	igvm  *igvm.File
	order tdx.Order
	gce   string    // machine type, for Google's older hypervisor
	err   io.Writer // for warnings
	tdx   bool
	line  string // the kernel's command line

	config firstboot.Content // of the first boot
}

// readInputs reads what the flags name. Firmware and kernel are hashed side by side.
func readInputs(c *urfave.Context, technology string) (*inputs, error) {
	if c.String("firmware") == "" {
		return nil, cli.Usagef("--firmware is needed: the digest covers it")
	}
	if c.String("kernel") == "" && (c.IsSet("initrd") || c.IsSet("cmdline")) {
		return nil, cli.Usagef("--initrd and --cmdline are measured only with a --kernel")
	}
	if c.IsSet("config") && c.String("initrd") == "" {
		return nil, cli.Usagef("--config is measured only with an --initrd, which it stands before")
	}
	in := &inputs{tdx: technology == technologyTDX, gce: c.String("gce-machine"), err: c.App.ErrWriter}
	in.line = c.String("cmdline")
	in.Technology = launch.Technology(technology)
	if err := in.readOptions(c); err != nil {
		return nil, err
	}
	in.warnOfKernel(c)
	if f, ok := in.err.(*os.File); ok && term.IsTerminal(int(f.Fd())) { // large files take a while
		slow := time.AfterFunc(time.Second, func() {
			(&cli.IO{Err: in.err, Name: "latchkey"}).Say("reading and hashing the files…")
		})
		defer slow.Stop()
	}
	kernel := make(chan error, 1)
	go func() { kernel <- in.hashKernel(c) }()
	err := in.readFirmware(c.String("firmware"))
	if e := <-kernel; err == nil {
		err = e
	}
	if err == nil {
		err = in.checkTogether(c)
	}
	return in, err
}

// registerFlags determine the registers that a CPU starts with.
var registerFlags = []string{"vcpus", "cpu", "cpu-signature", "vmsa", "features", "vmm"}

// checkTogether refuses flags that mean nothing together with the others.
func (in *inputs) checkTogether(c *urfave.Context) error {
	snp := in.Technology == launch.SNP
	registers := snp || in.Technology == launch.SEVES
	for _, name := range registerFlags {
		if c.IsSet(name) && !registers && !(in.tdx && name == "vmm") {
			return cli.Usagef("--%s: a digest of %s covers no registers", name, in.Technology)
		}
	}
	for _, name := range append([]string{"svsm", "kernel", "initrd", "config", "cmdline"}, registerFlags...) {
		if c.IsSet(name) && in.igvm != nil && name != "vcpus" {
			return cli.Usagef("--%s: an IGVM file brings all that is measured", name)
		}
	}
	switch {
	case in.tdx && in.Kernel != nil:
		return cli.Usagef("--kernel: MRTD does not cover it; a TDX guest's firmware measures it into RTMR1 and RTMR2")
	case c.IsSet("svsm") && !snp:
		return cli.Usagef("--svsm: an SVSM needs --technology sev-snp")
	case c.IsSet("vars-size") && !c.IsSet("svsm"):
		return cli.Usagef("--vars-size: it only moves an --svsm")
	case c.IsSet("config") && in.Kernel == nil:
		return cli.Usagef("--config: it is measured only with a --kernel and its --initrd")
	case (c.IsSet("tdx-order") || c.IsSet("gce-machine")) && !in.tdx:
		return cli.Usagef("--tdx-order and --gce-machine are for --technology tdx")
	case c.IsSet("tdx-order") && c.IsSet("gce-machine"):
		return cli.Usagef("--tdx-order and --gce-machine exclude each other")
	case registers && in.igvm == nil && in.VMM == launch.QEMU && !namesCPU(c):
		return cli.WithHint(cli.Usagef("--cpu is needed: the digest covers the registers that a CPU starts with"),
			"models: "+strings.Join(launch.CPUs(), ", "), hintSignature)
	}
	return nil
}

func namesCPU(c *urfave.Context) bool {
	return c.String("cpu") != "" || c.String("cpu-signature") != ""
}

func (in *inputs) hashKernel(c *urfave.Context) error {
	k := c.String("kernel")
	if k == "" {
		return nil
	}
	initrd := firstboot.Initrd{File: c.String("initrd")}
	if c.IsSet("config") {
		config, err := firstboot.Load(c.String("config"))
		if err == nil {
			in.config, err = config.Read()
		}
		if err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--config: %w", err))
		}
		initrd.Config = in.config.Archive()
	}
	h, err := sev.HashKernelFiles(k, initrd, c.String("cmdline"))
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	in.Kernel = &h
	return nil
}

// warnOfKernel says what QEMU or the kernel would make of what is measured.
func (in *inputs) warnOfKernel(c *urfave.Context) {
	file := c.String("kernel")
	if file == "" {
		return
	}
	if odd := bzimage.Unusual(c.String("cmdline")); odd != "" {
		in.warn("--cmdline: %s", odd)
	}
	switch k, err := bzimage.Read(file); {
	case errors.Is(err, bzimage.ErrNotLinux):
		in.warn("--kernel %s: %v", file, err)
	case err == nil && k.Cut(c.String("cmdline")) != "":
		in.warn("--cmdline: %s", k.Cut(c.String("cmdline")))
	}
}

func (in *inputs) warn(format string, args ...any) {
	(&cli.IO{Err: in.err, Name: "latchkey"}).Say("warning: "+format, args...)
}

// looks refuses what is certainly not a firmware image, and returns a warning about what may
// not be one.
func looks(name string, b []byte) (odd string, err error) {
	switch why, sure := ovmf.Looks(b); {
	case sure:
		return "", cli.Usagef("%s: %s", name, why)
	case why != "":
		return fmt.Sprintf("%s: this may be no firmware image: %s", name, why), nil
	}
	return "", nil
}

func (in *inputs) readFirmware(file string) error {
	b, err := ovmf.ReadFile(file)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if igvm.Is(b) {
		if in.igvm, err = igvm.Parse(b); err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
		if in.Technology != launch.SNP {
			return cli.Usagef("--firmware %s: an IGVM file is measured for --technology sev-snp only", file)
		}
		return nil
	}
	odd, err := looks("--firmware "+file, b)
	switch {
	case err != nil:
		return err
	case odd != "":
		in.warn("%s", odd)
	case len(b)%(64<<10) != 0 && in.VMM == launch.QEMU:
		in.warn(
			"--firmware %s: %d bytes, and QEMU takes only whole blocks of 64 KiB with -bios (cut off, or padded?)",
			file,
			len(b),
		)
	}
	if in.image, err = ovmf.Parse(b); err != nil {
		return err
	}
	if in.Firmware, err = launch.LayoutOf(in.image); err != nil {
		return err
	}
	if in.Technology == launch.SNP && len(b)%sev.PageSize == 0 {
		d := launch.PagesDigest(b)
		in.Firmware.PagesDigest = &d
	}
	return nil
}

func (in *inputs) readOptions(c *urfave.Context) (err error) {
	if t := string(in.Technology); !slices.Contains(technologies, t) {
		return cli.Choice("technology", "technology", t, technologies)
	}
	in.VCPUs = c.Int("vcpus")
	if in.VMM, err = launch.ParseVMM(c.String("vmm")); err != nil {
		return cli.Usagef("--vmm: %w", err)
	}
	if in.Profile, err = launch.ParseProfile(c.String("vmsa")); err != nil {
		return cli.Usagef("--vmsa: %w", err)
	}
	if in.Technology == launch.SNP {
		in.Features = launch.DefaultFeatures
	}
	if f := c.String("features"); f != "" {
		if in.Features, err = strconv.ParseUint(f, 0, 64); err != nil {
			return cli.Usagef("--features %s: must be a number of at most 64 bits", f)
		}
	}
	if err := in.readCPU(c); err != nil {
		return err
	}
	if err := in.readTDX(c); err != nil {
		return err
	}
	return in.readSVSM(c)
}

func (in *inputs) readTDX(c *urfave.Context) error {
	switch o := c.String("tdx-order"); o {
	case tdxOrders[0], "":
	case tdxOrders[1]:
		in.order = tdx.TwoPass
	default:
		return cli.Choice("tdx-order", "order", o, tdxOrders)
	}
	if c.IsSet("gce-machine") && in.VMM != launch.QEMU {
		return cli.Usagef("--gce-machine: it is for Google's own VMM: leave out --vmm")
	}
	if c.IsSet("gce-machine") && !slices.Contains(tdx.GCEMachines(), in.gce) {
		return cli.Choice("gce-machine", "machine type", in.gce, tdx.GCEMachines())
	}
	return nil
}

// hintSignature explains how to name a CPU model that is not in the list.
const hintSignature = "any other model: --cpu-signature"

func (in *inputs) readCPU(c *urfave.Context) error {
	model, signature := c.String("cpu"), c.String("cpu-signature")
	switch {
	case model != "" && signature != "":
		return cli.Usagef("--cpu and --cpu-signature exclude each other")
	case model != "":
		var err error
		if in.CPU, err = launch.ParseCPU(model); err != nil {
			return cli.WithHint(cli.Usagef("--cpu: %w", err), hintSignature)
		}
	case signature != "":
		n, err := strconv.ParseUint(signature, 0, 32)
		if err != nil {
			return cli.Usagef("--cpu-signature %s: must be a 32-bit number", signature)
		}
		in.CPU = launch.Signature(n)
	}
	return nil
}

func (in *inputs) readSVSM(c *urfave.Context) error {
	file := c.String("svsm")
	if file == "" {
		return nil
	}
	b, err := ovmf.ReadFile(file)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	img, err := ovmf.Parse(b)
	if err != nil {
		return err
	}
	in.SVSM = &launch.SVSM{Image: img, VarsSize: c.Int("vars-size")}
	return nil
}

// digest predicts what the platform measures.
func (in *inputs) digest() ([]byte, error) {
	switch {
	case in.tdx && in.gce != "":
		d, err := tdx.PredictGCE(in.image, in.gce)
		return d[:], err
	case in.tdx:
		if why := in.image.AcceptsTDX(); why != "" && in.VMM == launch.QEMU {
			return nil, cli.WithHint(cli.Usagef("QEMU refuses the firmware: %s", why),
				"a digest for another hypervisor: --vmm gce")
		}
		d, err := tdx.Predict(in.image, in.order)
		return d[:], err
	case in.igvm != nil:
		d, err := in.igvm.SNPDigest(igvm.Options{VCPUs: in.VCPUs})
		return d[:], err
	}
	return launch.Digest(in.Inputs)
}

// algorithm is how the digest is made.
func (in *inputs) algorithm() string {
	if slices.Contains([]launch.Technology{launch.SEV, launch.SEVES}, in.Technology) {
		return "sha256"
	}
	return "sha384"
}
