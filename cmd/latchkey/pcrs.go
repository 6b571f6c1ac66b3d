package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/bytesize"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/firstboot"
	"github.com/vmlatch/vmlatch/firmware/ovmf"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/firmware/uefivar"
)

func newPCRs(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "pcrs", Usage: "predict the PCRs of a measured boot, or explain those of its event log",
		Description: `A guest with a vTPM measures what it boots into registers (PCRs). This predicts them from
your own copies of the files. Each is exact, or depends on a condition that is named, or
is unknown with its cause; none is guessed. The table can be kept, and --expect compares it.

--log reads the log of a boot (in the guest /sys/kernel/security/tpm0/binary_bios_measurements)
and says which input changed. A log proves nothing by itself: compare the registers with
those that the guest's TPM has signed. And a vTPM is the host's: what it signs proves the
host's word.

Exit code 0: predicted, or the log is as predicted. 2: the files cannot be used. 4: the log
differs; the input is named.

Examples:

   latchkey pcrs --firmware OVMF.fd --kernel vmlinuz --initrd initrd.img \
      --cmdline "console=ttyS0 quiet" --memory 2GiB --qemu 11.1 > expected
   latchkey pcrs --firmware OVMF.fd --kernel vmlinuz --cmdline quiet --tables tables.json
   latchkey pcrs --firmware OVMF_CODE_4M.fd --vars OVMF_VARS_4M.ms.fd --uki linux.efi
   latchkey pcrs --log measurements --expect expected
   latchkey pcrs --log measurements --firmware OVMF.fd --kernel vmlinuz --cmdline quiet
   latchkey pcrs --log measurements --events`,
		Flags: append(bootFlags(),
			&urfave.StringSliceFlag{Name: "bank", Usage: "`BANK` sha1, sha256 (default), sha384, sha512; repeatable"},
			&urfave.StringFlag{Name: "log", Usage: "event log `FILE` of a boot"},
			&urfave.StringFlag{Name: "expect", Usage: "with --log: compare it with a table `FILE` that was kept"},
			&urfave.BoolFlag{Name: "events", Usage: "list the measurements too"},
			&urfave.BoolFlag{Name: "json", Usage: "print JSON"},
		),
		Action: func(c *urfave.Context) error { return runPCRs(c, s) },
	}
}

// bootFlags name what a measured boot is predicted from.
func bootFlags() []urfave.Flag {
	return []urfave.Flag{
		&urfave.StringFlag{Name: "firmware", Usage: "firmware image `FILE`"},
		&urfave.StringFlag{Name: "vars", Usage: "variables `FILE`, if the firmware has a file for them"},
		&urfave.StringFlag{Name: "kernel", Usage: "kernel `FILE` that QEMU loads"},
		&urfave.StringFlag{Name: "initrd", Usage: "initrd `FILE`"},
		&urfave.StringFlag{Name: "cmdline", Usage: "kernel command `LINE`, exactly"},
		&urfave.StringFlag{
			Name:  "uki",
			Usage: "unified kernel image `FILE` that the firmware starts from a disk",
		},
		&urfave.StringFlag{Name: "disk", Usage: "the disk's image `FILE` (raw), for its partition table (PCR 5)"},
		&urfave.StringFlag{
			Name:  "phase",
			Usage: "how far systemd has come, `PHASE`: none, enter-initrd, leave-initrd, sysinit, ready (PCR 11)",
		},
		&urfave.StringFlag{Name: "memory", Usage: "the guest's memory, `SIZE` (PCR 4 with some firmware)"},
		&urfave.StringFlag{Name: "qemu", Usage: "`VERSION` of QEMU, such as 11.1 (PCR 4)"},
		&urfave.StringFlag{Name: "tables", Usage: "QEMU's tables `FILE`, of \"vmlatch plan --tables\" (PCR 1)"},
	}
}

// noBootFlags is an error if inputs of a prediction are given without firmware.
func noBootFlags(c *urfave.Context) error {
	for _, f := range bootFlags() {
		if name := f.Names()[0]; c.IsSet(name) && !c.IsSet("firmware") {
			return cli.Usagef("--%s is an input of a prediction, which needs --firmware too", name)
		}
	}
	return nil
}

func runPCRs(c *urfave.Context, s *cli.IO) error {
	if _, err := cli.Args(c); err != nil {
		return err
	}
	if err := noEmptyOption(c, "cmdline"); err != nil {
		return err
	}
	var log *eventlog.Log
	if name := c.String("log"); name != "" {
		b, err := s.ReadInput(name, eventlog.MaxSize)
		if err == nil {
			log, err = eventlog.Parse(b)
		}
		if err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--log %s: %w", name, err))
		}
	}
	banks, err := theBanks(c, log)
	if err != nil {
		return err
	}
	r := &pcrReport{Schema: "latchkey.pcrs/1", banks: banks}
	if c.IsSet("expect") && (log == nil || c.IsSet("firmware")) {
		return cli.Usagef("--expect goes with --log, and without --firmware: it has the expected values")
	}
	if err := noBootFlags(c); err != nil {
		return err
	}
	switch {
	case c.IsSet("firmware"):
		in, err := bootInputs(c, s, banks)
		if err != nil {
			return err
		}
		if err := r.predict(in, log); err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
	case c.IsSet("expect"):
		if err := r.expect(c.String("expect"), log); err != nil {
			return err
		}
	case log != nil:
		if err := r.replay(log); err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--log %s: %w", c.String("log"), err))
		}
	default:
		return cli.WithHint(cli.Usagef("nothing to predict from"),
			"--firmware with --kernel or --uki predicts; --log shows a boot's")
	}
	if c.Bool("events") {
		r.listEvents(log)
	}
	return r.show(c.Bool("json"), s)
}

// theBanks are those of --bank; of a log one that it has.
func theBanks(c *urfave.Context, log *eventlog.Log) (list []eventlog.Bank, err error) {
	for _, name := range c.StringSlice("bank") {
		b, err := eventlog.BankNamed(name)
		if err != nil {
			return nil, cli.Usagef("--bank: %w", err)
		}
		if log != nil && !log.Has(b) {
			return nil, cli.Usagef("--bank %s: the log has %v only", name, log.Banks)
		}
		list = append(list, b)
	}
	switch {
	case len(list) > 1 && log != nil:
		return nil, cli.Usagef("a log is compared in one bank: name one --bank")
	case len(list) > 0:
		return list, nil
	case log == nil || log.Has(eventlog.SHA256):
		return []eventlog.Bank{eventlog.SHA256}, nil
	}
	for _, b := range log.Banks {
		if b.Hash() != 0 {
			return []eventlog.Bank{b}, nil
		}
	}
	return nil, cli.Usagef("--log: it has no digests of sha1, sha256, sha384 or sha512")
}

// maxImage bounds kernels and unified kernel images, in bytes.
const maxImage = 1 << 30

// bootInputs reads what the flags name.
func bootInputs(c *urfave.Context, s *cli.IO, banks []eventlog.Bank) (*predict.Inputs, error) {
	in := &predict.Inputs{Cmdline: c.String("cmdline"), Phase: c.String("phase"), Banks: banks}
	b, err := ovmf.ReadFile(c.String("firmware"))
	if err != nil {
		return nil, cli.Fail(cli.ExitUsage, err)
	}
	odd, err := looks("--firmware "+c.String("firmware"), b)
	if err != nil {
		return nil, err
	}
	if odd != "" {
		s.Say("warning: %s", odd)
	}
	if in.Firmware, err = predict.ReadFirmware(b); err != nil {
		return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--firmware %s: %w", c.String("firmware"), err))
	}
	if err := readVariables(c, in); err != nil {
		return nil, err
	}
	for _, x := range []struct {
		flag string
		to   *[]byte
	}{{"kernel", &in.Kernel}, {"uki", &in.UKI}} {
		if name := c.String(x.flag); name != "" {
			if *x.to, err = regular.Read(name, maxImage); err != nil {
				return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--%s: %w", x.flag, err))
			}
		}
	}
	if in.Kernel == nil && (c.IsSet("initrd") || c.IsSet("cmdline")) {
		return nil, cli.Usagef("--initrd and --cmdline are of a --kernel; a unified kernel image brings its own")
	}
	if in.UKI == nil && (c.IsSet("disk") || c.IsSet("phase")) {
		return nil, cli.Usagef("--disk and --phase are for a --uki")
	}
	if name := c.String("initrd"); name != "" {
		if in.Initrd, err = predict.HashInitrd(firstboot.Initrd{File: name}, banks...); err != nil {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--initrd: %w", err))
		}
	}
	if name := c.String("disk"); name != "" {
		f, err := os.Open(name)
		if err == nil {
			in.GPT, err = predict.GPT(f)
			_ = f.Close()
		}
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--disk %s: %w", name, err))
		}
	}
	return in, readMachine(c, in)
}

// readVariables reads the file that QEMU keeps for the firmware's variables.
func readVariables(c *urfave.Context, in *predict.Inputs) error {
	name := c.String("vars")
	if name == "" {
		if in.Firmware.Variables == nil {
			return cli.WithHint(
				cli.Usagef("--firmware %s: its variables are in a file of their own", c.String("firmware")),
				"name it: --vars FILE (the one of the guest, if it has booted before)",
			)
		}
		return nil
	}
	if in.Firmware.Variables != nil {
		return cli.Usagef("--vars: the firmware image has variables itself, and QEMU takes those")
	}
	b, err := ovmf.ReadFile(name)
	if err == nil {
		in.Variables, err = uefivar.Read(b)
	}
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("--vars %s: %w", name, err))
	}
	return nil
}

// readMachine reads what is known of the host's machine.
func readMachine(c *urfave.Context, in *predict.Inputs) error {
	if text := c.String("memory"); text != "" {
		size, err := bytesize.Parse(text)
		if err != nil {
			return cli.Usagef("--memory: %w", err)
		}
		in.Memory = uint64(size)
	}
	version := c.String("qemu")
	if name := c.String("tables"); name != "" {
		t, err := readTables(name)
		if err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--tables %s: %w", name, err))
		}
		if in.Tables = t.Files; version == "" {
			version = t.QEMU
		}
	}
	if version != "" {
		major, _, _ := strings.Cut(version, ".")
		n, err := strconv.Atoi(major)
		if err != nil || n < 1 || n > 99 || !isVersion.MatchString(version) {
			return cli.Usagef("--qemu %s: must be a version, such as 11.1", version)
		}
		in.QEMU = n
	}
	return nil
}

var isVersion = regexp.MustCompile(`^\d+(\.\d+){0,2}$`)

// maxTables bounds a file of tables, in bytes.
const maxTables = 16 << 20

func readTables(name string) (*predict.TablesFile, error) {
	b, err := regular.Read(name, maxTables)
	if err != nil {
		return nil, err
	}
	t := &predict.TablesFile{}
	if err := json.Unmarshal(b, t); err != nil || t.Schema != predict.TablesSchema {
		return nil, errors.Join(fmt.Errorf("must be a file of the schema %q", predict.TablesSchema), err)
	}
	return t, nil
}
