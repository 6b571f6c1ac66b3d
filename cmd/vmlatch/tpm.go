package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/launcher/spec"
	"github.com/vmlatch/vmlatch/launcher/swtpm"
)

func newTPM(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name: "tpm", Usage: "show, back up or reset the TPM of a VM",
		ArgsUsage: "NAME | ca | srk NAME | export NAME FILE | import NAME FILE | reset NAME",
		Category:  catRun,
		Description: `A persistent TPM is kept under its VM's name. "export" writes a backup of one whose VM does
not run, "import" gives it to a VM that has none, "reset" removes it: the next start makes
a new one, to which nothing is sealed. "ca" prints the certificate of the CA that has
signed the endorsement keys of this host's TPMs; it proves the host's word. "srk" writes the
public part of its storage root key (TPM2B_PUBLIC), to which "latchkey tpm seal" seals.

A copy is the same TPM: its keys, its counters and what it says. Only one of the two may
live on. An older copy brings back older counters.

Examples:

   vmlatch tpm guest
   vmlatch tpm export guest guest-tpm.tar
   vmlatch tpm import guest guest-tpm.tar
   vmlatch tpm reset guest
   vmlatch tpm ca > tpm-ca.pem
   vmlatch tpm srk guest > guest.srk`,
		Flags: hostFlags(jsonFlag(), &urfave.StringFlag{
			Name: "key", Usage: "import: the key of the state, `FILE`, to see whether it can be read here",
		}),
		BashComplete: completeNames,
		Action: func(c *urfave.Context) error {
			root, h, err := vms(c, s)
			if err != nil {
				return err
			}
			t := &tpmCommand{s: s, c: c, root: root, host: h}
			switch args := c.Args().Slice(); {
			case len(args) == 1 && args[0] == "ca":
				return t.ca()
			case len(args) == 1:
				return t.show(args[0])
			case len(args) == 2 && args[0] == "srk":
				return t.srk(args[1])
			case len(args) == 3 && args[0] == "export":
				return t.export(args[1], args[2])
			case len(args) == 3 && args[0] == "import":
				return t.load(args[1], args[2])
			case len(args) == 2 && args[0] == "reset":
				return t.reset(args[1])
			}
			return tpmUsage(c)
		},
	}
}

// tpmUsage says what is wrong with the arguments.
func tpmUsage(c *urfave.Context) error {
	actions := []string{"ca", "srk", "export", "import", "reset"}
	switch first := c.Args().First(); {
	case c.NArg() == 0:
		return cli.Usagef("NAME is missing (usage: vmlatch tpm %s)", c.Command.ArgsUsage)
	case !slices.Contains(actions, first):
		return cli.Choice("", "action", first, actions)
	case first == "export" || first == "import":
		return cli.Usagef("tpm %s needs NAME and FILE", first)
	case first == "ca":
		return cli.Usagef("tpm ca takes no argument: the CA is the host's")
	default:
		return cli.Usagef("tpm %s needs NAME", first)
	}
}

type tpmCommand struct {
	s    *cli.IO
	c    *urfave.Context
	root rundir.Root
	host *spec.HostConfig
}

func (t *tpmCommand) ca() error {
	b, err := swtpm.CertificateOf(t.root.TPMAuthority())
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Fail(cli.ExitFailure, errors.New("this host has made no TPM yet, and so no CA"))
	}
	if err == nil {
		_, err = t.s.Out.Write(b)
	}
	return err
}

func (t *tpmCommand) srk(name string) error {
	if err := rundir.CheckName(name); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if has, err := t.root.HasTPM(name); err != nil || !has {
		return errors.Join(err, noTPM(name))
	}
	b, err := t.root.TPMKey(name)
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: the public part of its key was not kept", name),
			"read it in the guest: tpm2_readpublic -c 0x81000001 -o guest.srk")
	}
	if err == nil {
		_, err = t.s.Out.Write(b)
	}
	return err
}

func noTPM(name string) error {
	return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: there is no persistent TPM of this name", name),
		"a spec with [tpm] makes one at its first start")
}

// tpmInfo is what "tpm NAME" shows.
type tpmInfo struct {
	Schema    string            `json:"schema"`
	Name      string            `json:"name"`
	Trust     string            `json:"trust"` // always "host"
	State     string            `json:"state"` // directory
	Encrypted bool              `json:"encrypted"`
	Changed   time.Time         `json:"changed"`
	VM        rundir.Status     `json:"vm"`
	Lives     bool              `json:"lives"`
	EKCerts   map[string]string `json:"ek-certificates"` // SHA-256 by file
}

func (t *tpmCommand) show(name string) error {
	if err := rundir.CheckName(name); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	file := t.root.TPMState(name)
	info, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return noTPM(name)
	}
	if err != nil {
		return err
	}
	x := tpmInfo{
		Schema: "vmlatch.tpm/1", Name: name, Trust: plan.TrustHost, State: filepath.Dir(file),
		Changed: info.ModTime().UTC(), VM: rundir.Ended, EKCerts: map[string]string{},
	}
	if x.Encrypted, err = swtpm.Encrypted(file); err != nil {
		return err
	}
	e, err := t.root.Peek(name)
	if err != nil {
		return err
	}
	if e != nil {
		x.VM = e.Status()
		x.Lives = x.VM == rundir.Alive && !slices.Contains(e.Gone(), plan.RoleTPM)
	}
	for _, f := range []string{rundir.EKCertRSA, rundir.EKCertECC} {
		if b, err := os.ReadFile(filepath.Join(x.State, f)); err == nil {
			if block, _ := pem.Decode(b); block != nil {
				x.EKCerts[f] = fmt.Sprintf("%x", sha256.Sum256(block.Bytes))
			}
		}
	}
	if t.c.Bool("json") {
		return t.s.JSON(x)
	}
	table := t.s.Table(2)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(table, "%s\t%s\n", key, cli.Escape(fmt.Sprintf(format, args...)))
	}
	row("name", "%s", x.Name)
	row("VM", "%s", x.VM)
	row("lives", "%s", yesNo(x.Lives))
	row("state", "%s, %s", x.State, map[bool]string{true: "encrypted", false: "not encrypted"}[x.Encrypted])
	row("changed", "%s", x.Changed.Local().Format(time.RFC3339))
	for _, f := range []string{rundir.EKCertRSA, rundir.EKCertECC} {
		if sum := x.EKCerts[f]; sum != "" {
			row("certificate", "%s, SHA-256 %s", f, sum)
		}
	}
	row("trust", "host: what it holds and says is in the hands of whoever controls this host")
	return table.Flush()
}

// stopped explains why the TPM of a VM that runs is left alone.
func stopped(err error) error {
	if errors.Is(err, rundir.ErrExists) {
		return cli.WithHint(err, "stop it first: its TPM is in use")
	}
	return err
}

// sumsFile is the last file of a backup: the SHA-256 of each, as sha256sum(1) checks them.
const sumsFile = "SHA256SUMS"

func (t *tpmCommand) export(name, file string) error {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	now := time.Now().Truncate(time.Second)
	add := func(f string, data []byte) error {
		err := w.WriteHeader(&tar.Header{
			Name: f, Mode: 0o600, Size: int64(len(data)), ModTime: now, Format: tar.FormatUSTAR,
		})
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	}
	var sums strings.Builder
	err := t.root.EachTPMFile(t.c.Context, name, func(f string, data []byte) error {
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(data), f)
		return add(f, data)
	})
	if err == nil {
		err = errors.Join(add(sumsFile, []byte(sums.String())), w.Close())
	}
	if err != nil {
		return stopped(err)
	}
	defer clear(b.Bytes())
	if file == "-" {
		_, err := t.s.Out.Write(b.Bytes())
		return err
	}
	out, err := t.s.PrepareOutput(file, 0o600)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	if err := out.Commit(b.Bytes()); err != nil {
		return err
	}
	encrypted, err := swtpm.Encrypted(t.root.TPMState(name))
	if err == nil && !encrypted {
		t.s.Say("%s: is not encrypted: whoever can read it has the TPM", file)
	}
	return err
}

// Bounds of a backup.
const (
	maxBackup      = 8 << 20 // bytes
	maxBackupFiles = 8
)

// readBackup reads the files of a backup, which must be whole.
func readBackup(b []byte) (map[string][]byte, error) {
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		switch {
		case err != nil:
		case h.Typeflag != tar.TypeReg || files[h.Name] != nil || len(files) >= maxBackupFiles:
			err = fmt.Errorf("%q is not a regular file, is there twice, or is one too many", h.Name)
		case h.Size > maxBackup:
			err = fmt.Errorf("%q is too large", h.Name)
		default:
			files[h.Name], err = io.ReadAll(io.LimitReader(r, h.Size)) // which may be sparse
		}
		if err != nil {
			return nil, fmt.Errorf("is not a backup of a TPM: %w", err)
		}
	}
	sums := string(files[sumsFile])
	delete(files, sumsFile)
	for name, data := range files {
		if !strings.Contains(sums, fmt.Sprintf("%x  %s\n", sha256.Sum256(data), name)) {
			return nil, fmt.Errorf("is damaged, or not a backup of a TPM: %q is not what %s says", name, sumsFile)
		}
	}
	if n := strings.Count(sums, "\n"); n != len(files) || n == 0 {
		return nil, fmt.Errorf(
			"is damaged, or not a backup of a TPM: %d files, and %s has %d",
			len(files),
			sumsFile,
			n,
		)
	}
	return files, nil
}

func (t *tpmCommand) load(name, file string) error {
	b, err := t.s.ReadInput(file, maxBackup)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer clear(b)
	files, err := readBackup(b)
	if err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err))
	}
	var key []byte
	if k := t.c.String("key"); k != "" {
		config := plan.TPM{Key: k}
		if key, err = config.ReadKey(); err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--key: %w", err))
		}
		defer clear(key)
	}
	err = t.root.ImportTPM(t.c.Context, name, files, func(dir *os.File) error { return t.readable(dir, key) })
	switch {
	case errors.Is(err, rundir.ErrTPM):
		return cli.Fail(cli.ExitUsage, err, "vmlatch tpm reset NAME removes the one that is there")
	case errors.Is(err, rundir.ErrExists):
		return stopped(err)
	case err != nil:
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err))
	}
	t.s.Say("%s: has this TPM now; if the VM that it was exported from still has it, one of the two must go", name)
	return nil
}

// readable is an error unless the swtpm of this host can read a state.
func (t *tpmCommand) readable(dir *os.File, key []byte) error {
	encrypted, err := swtpm.Encrypted(filepath.Join(dir.Name(), rundir.TPMStateFile))
	if err != nil {
		return err
	}
	if encrypted && key == nil {
		t.s.Say("warning: its state is encrypted: without --key it cannot be seen whether it can be read here")
		return nil
	}
	if !encrypted {
		key = nil
	}
	program, err := swtpm.Find()
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(t.c.Context, time.Minute)
	defer cancel()
	return swtpm.Check(ctx, []string{self, plan.KeepTPM}, program, dir, key)
}

func (t *tpmCommand) reset(name string) error {
	if err := t.root.ForgetTPM(t.c.Context, name); err != nil {
		return stopped(err)
	}
	t.s.Say("%s: its TPM is removed: the next start makes a new one, to which nothing is sealed", name)
	return nil
}
