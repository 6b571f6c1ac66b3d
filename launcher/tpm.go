package launcher

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
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
		if persistent && s.opt.Notice != nil {
			s.opt.Notice(s.plan.Name + ": a new TPM is made: nothing is sealed to it")
		}
		m := swtpm.Maker{
			Keeper: []string{facts.Keeper, plan.KeepTPM}, Program: facts.Program, Banks: t.PCRBanks(),
		}
		if persistent {
			m.KeepSRK = func(public *tpm2.TPMTPublic) error {
				return os.WriteFile(
					filepath.Join(dir.Name(), rundir.SRKPublic),
					tpm2.Marshal(tpm2.New2B(*public)),
					0o600,
				)
			}
		}
		if persistent && (t.Certificates == nil || *t.Certificates) {
			ca, err := swtpm.OpenCA(s.plan.Dirs.TPMAuthority())
			if err != nil {
				return err
			}
			m.Certify = func(key crypto.PublicKey, about swtpm.About) ([]byte, error) {
				cert, err := ca.Certify(key, about)
				if err != nil {
					return nil, err
				}
				file := rundir.EKCertECC
				if _, ok := key.(*rsa.PublicKey); ok {
					file = rundir.EKCertRSA
				}
				text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
				return cert, os.WriteFile(filepath.Join(dir.Name(), file), text, 0o600)
			}
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
