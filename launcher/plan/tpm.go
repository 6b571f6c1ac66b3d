package plan

import (
	"errors"
	"fmt"
	"os"

	"github.com/vmlatch/vmlatch/firmware/credential"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/confine"
	"github.com/vmlatch/vmlatch/launcher/internal/argv"
	"github.com/vmlatch/vmlatch/launcher/swtpm"
)

// TPM is the table [tpm]: a TPM 2.0 by swtpm. It is the host's: who controls the host controls what
// it holds, and what it says proves no more than the host's word.
type TPM struct {
	Model string `toml:"model"` // crb, tis
	State string `toml:"state"` // persistent, ephemeral
	Key   string `toml:"key"`   // 32 bytes that encrypt its state: a file, or credential:NAME
	Trust string `toml:"trust"` // "host", which a confidential guest's spec must say
	// Banks are those of the PCRs; certificates are made of a new TPM's endorsement keys, by this
	// host's CA. Both count when the TPM is made.
	Banks        []string `toml:"banks"`
	Certificates *bool    `toml:"certificates"`

	on bool
}

// States of TPMs.
const (
	TPMPersistent = "persistent"
	TPMEphemeral  = "ephemeral"
)

// TrustHost is what trust must say where the guest does not trust its host otherwise.
const TrustHost = "host"

// TPMKeySize is the size of the key of a TPM's state, in bytes.
const TPMKeySize = 32

// On reports whether the guest has a TPM.
func (t *TPM) On() bool { return t.on }

// hostTPM is what people write who mean the host's TPM.
const hostTPM = "host-tpm"

func (t *TPM) complete(g *Guest) error {
	if t.on = g.File.Has("tpm"); !t.on {
		return nil
	}
	for key, value := range map[string]string{"key": t.Key, "state": t.State, "model": t.Model, "trust": t.Trust} {
		if value == "" && g.File.Has("tpm."+key) {
			return g.File.Errorf("tpm."+key, "is empty: leave it out for the default")
		}
	}
	if t.Key == hostTPM { // systemd seals to the host's TPM, and follows its changes, better than this could
		e := g.File.Errorf("tpm.key", "%q: the host's TPM keeps keys as credentials of systemd", hostTPM)
		e.Fix = "systemd-creds encrypt --with-key=host+tpm2 --name=tpm-key - tpm-key.cred; in a drop-in of the unit" +
			" LoadCredentialEncrypted=tpm-key:/PATH/tpm-key.cred; here key = \"credential:tpm-key\""
		return e
	}
	if t.Model == "" {
		t.Model = "crb"
	}
	if t.State == "" {
		t.State = TPMPersistent
	}
	if err := OneOf(g.File, "tpm.model", t.Model, "crb", "tis"); err != nil {
		return err
	}
	if err := OneOf(g.File, "tpm.state", t.State, TPMPersistent, TPMEphemeral); err != nil {
		return err
	}
	if len(t.Banks) == 0 {
		t.Banks = []string{eventlog.SHA256.String()}
	}
	for _, name := range t.Banks {
		if _, err := eventlog.BankNamed(name); err != nil {
			return g.File.Errorf("tpm.banks", "%v", err)
		}
	}
	if t.Trust != "" {
		if err := OneOf(g.File, "tpm.trust", t.Trust, TrustHost); err != nil {
			return err
		}
	}
	if t.Key == "" {
		return nil
	}
	if t.State == TPMEphemeral {
		return g.File.Errorf("tpm.key", "an ephemeral TPM's state is gone with the VM: there is nothing to encrypt")
	}
	if path, err := credential.Path(t.Key); err == nil && path == t.Key {
		t.Key = g.File.Abs(t.Key)
	}
	return g.File.NoNUL(t.Key)
}

// PCRBanks are the banks that a new TPM has.
func (t *TPM) PCRBanks() (list []eventlog.Bank) {
	for _, name := range t.Banks {
		if b, err := eventlog.BankNamed(name); err == nil { // it was looked at
			list = append(list, b)
		}
	}
	return list
}

// KeepTPM is the first argument of the program that swtpm is started by; the second is the number
// of the pipe by which it learns that QEMU has gone, and a command line follows.
const KeepTPM = "__tpm"

// Roles of a TPM's descriptors.
const (
	RoleTPM     = "tpm" // of swtpm, too
	roleTPMLife = "tpm-life"
	// RoleTPMState is the directory of a TPM's state, which swtpm's user must own.
	RoleTPMState = "tpm-state"
)

// build starts swtpm with a socket pair to QEMU. Either may die first: swtpm ends
// when QEMU closes the pair, or, before QEMU has used it, when it closes the pipe.
func (t *TPM) build(b *Builder) error {
	if !t.on {
		return nil
	}
	s := b.Facts.TPM
	h := Helper{Role: RoleTPM, Meaning: "the TPM emulator swtpm"}
	pair := inherit(&h.FDs, FD{Role: RoleTPM, Meaning: "its end of a socket pair with QEMU", open: pairEnd(RoleTPM)})
	life := inherit(&h.FDs, FD{
		Role: roleTPMLife, Meaning: "a pipe that QEMU holds open for as long as it lives",
		open: pipeEnd(roleTPMLife),
	})
	state := inherit(&h.FDs, FD{
		Role: RoleTPMState, Meaning: "the directory of its state, " + t.State,
		open: func(o *Opening) (*os.File, error) { return o.Dir.OpenTPM(t.State == TPMPersistent) },
	})
	fds := swtpm.Descriptors{Life: life, State: state, Control: pair}
	if t.Key != "" {
		fds.Key = inherit(&h.FDs, FD{Role: "tpm-key", Meaning: "a pipe with the key of its state", open: t.openKey})
	}
	h.Argv = swtpm.KeptArgv([]string{s.Keeper, KeepTPM}, s.Program, fds)
	if b.confined() && s.Files != nil {
		h.Argv, h.Confinement = swtpm.Argv(s.Program, fds), b.tpmBox(life)
	}
	inherit(&h.FDs, FD{Role: "helper-lock", Meaning: "the lock by which it is found", open: helperLock})
	b.plan.Helpers = append(b.plan.Helpers, h)
	fd := b.Inherit(RoleTPM, "QEMU's end of a socket pair with swtpm", pairEnd(RoleTPM))
	b.Inherit(roleTPMLife, "a pipe by which swtpm learns that QEMU has gone", pipeEnd(roleTPMLife))
	b.Option("-chardev", argv.New("socket").Set("id", "tpm").SetInt("fd", fd).String(),
		"-tpmdev", "emulator,id=tpm0,chardev=tpm", "-device", "tpm-"+t.Model+",tpmdev=tpm0")
	b.Choose("tpm", t.Model+", "+t.State, b.Guest.File.From("tpm"))
	return nil
}

// tpmBox is what swtpm is confined in: a guest talks to it, and it needs its state and nothing
// else.
func (b *Builder) tpmBox(life int) *confine.Box {
	c := b.Facts.Confine
	box := c.box(b.Facts.TPM.Files)
	box.Life, box.Owns = life, true // it gives its files their mode
	box.Allow(confine.Write, b.plan.Dirs.TPM(b.Guest.Name, b.Guest.TPM.State == TPMPersistent))
	if c.Host.NoNamespaces == "" {
		box.Namespaces = []string{confine.User, confine.Mount, confine.IPC, confine.Network}
	}
	box.Missing = c.Host.Missing(box.Namespaces)
	c.own(box, "")
	return box
}

// ReadKey reads the key of the TPM's state, which the caller wipes.
func (t *TPM) ReadKey() ([]byte, error) {
	path, err := credential.Path(t.Key)
	if err != nil {
		return nil, err
	}
	key, err := regular.Read(path, 4*TPMKeySize)
	switch {
	case errors.Is(err, regular.ErrTooLarge):
		err = fmt.Errorf("%s: too many bytes, want %d of random data", path, TPMKeySize)
	case err == nil && len(key) != TPMKeySize:
		err = fmt.Errorf("%s: %d bytes, want %d of random data", path, len(key), TPMKeySize)
		clear(key)
	}
	return key, err
}

// openKey makes a pipe that holds the key.
func (t *TPM) openKey(*Opening) (*os.File, error) {
	key, err := t.ReadKey()
	if err != nil {
		return nil, fmt.Errorf("the key of the TPM's state: %w", err)
	}
	defer clear(key)
	return swtpm.KeyPipe(key)
}
