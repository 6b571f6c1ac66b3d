package launcher

import (
	"context"
	"errors"
	"os"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/swtpm"
)

// makeTPM makes the guest's TPM, at its first start.
func (s *starter) makeTPM(ctx context.Context) error {
	t := &s.plan.Guest.TPM
	if !t.On() {
		return nil
	}
	persistent := t.State == plan.TPMPersistent
	facts := s.plan.Facts.TPM
	return s.dir.MakeTPM(ctx, persistent, func(dir *os.File) error {
		s.step("tpm")
		m := swtpm.Maker{
			Keeper: []string{facts.Keeper, plan.KeepTPM}, Program: facts.Program, Banks: t.PCRBanks(),
		}
		if persistent && (t.Certificates == nil || *t.Certificates) {
			ca, err := swtpm.OpenCA(s.plan.Dirs.TPMAuthority())
			if err != nil {
				return err
			}
			m.Certify = ca.Certify
		}
		var key []byte
		if t.Key != "" {
			var err error
			if key, err = t.ReadKey(); err != nil {
				return err
			}
			defer clear(key)
		}
		err := m.Make(ctx, dir, key)
		if errors.Is(err, swtpm.ErrTPM) && ctx.Err() == nil {
			err = &fault.Error{Kind: fault.Host, Op: "emulate a TPM", Err: err, Check: fault.TPMProgram}
		}
		return err
	})
}
