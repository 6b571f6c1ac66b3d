package main

import (
	"encoding/json"
	"os"
	"path/filepath"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
	"github.com/vmlatch/vmlatch/launcher/spec"
)

// writeTables reads the tables of a spec's QEMU, in directories of its own: the VM may run.
func writeTables(c *urfave.Context, s *cli.IO, h *spec.HostConfig, file, to string) error {
	out, err := s.PrepareOutput(to, 0o644)
	if err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	defer out.Discard()
	dir, err := os.MkdirTemp("", "vmlatch-tables-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	h.RunDir, h.StateDir = filepath.Join(dir, "run"), filepath.Join(dir, "state")
	load, err := launcher.LoadSpec(file)
	if err != nil {
		return err
	}
	look, err := load.ForTables()
	if err != nil {
		return err
	}
	p, err := planSpec(c, h, look, c.Bool("emulate"))
	if err != nil {
		return err
	}
	t, err := p.Tables(c.Context)
	if err != nil {
		return err
	}
	b, err := json.MarshalIndent(t, "", " ")
	if err != nil {
		return err
	}
	return out.Commit(append(b, '\n'))
}
