package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"filippo.io/age"
	"filippo.io/age/armor"
	urfave "github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/regular"
)

// isSealed reports whether an owner file is encrypted: in age's format, with a passphrase.
func isSealed(b []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(b), []byte(armor.Header)) }

// unseal decrypts an owner file.
func (st *store) unseal(b []byte) ([]byte, error) {
	if st.sealed != nil && bytes.Equal(b, st.sealed) {
		return bytes.Clone(st.plain), nil
	}
	pass, err := st.passphrase.get(st.name)
	if err != nil {
		return nil, err
	}
	identity, err := age.NewScryptIdentity(pass)
	if err != nil {
		return nil, err
	}
	r, err := age.Decrypt(armor.NewReader(bytes.NewReader(b)), identity)
	var plain []byte
	if err == nil {
		plain, err = io.ReadAll(io.LimitReader(r, maxOwnerFile))
	}
	switch {
	case errors.As(err, new(*age.NoIdentityMatchError)):
		return nil, cli.Fail(cli.ExitRefused, fmt.Errorf("%w %s: the passphrase is wrong", errOwnerFile, st.name))
	case err != nil:
		return nil, cli.Usagef("%v %s: damaged, or not encrypted by latchkey", errOwnerFile, st.name)
	}
	st.sealed, st.plain = bytes.Clone(b), bytes.Clone(plain)
	return plain, nil
}

// workFactor is how much work a guess of a passphrase is, as a power of two: a second or so (age's
// own default). Tests of what else there is to sealing take less.
var workFactor = 18

// seal encrypts an owner file.
func (st *store) seal(plain []byte) ([]byte, error) {
	pass, err := st.passphrase.get(st.name)
	if err != nil {
		return nil, err
	}
	recipient, err := age.NewScryptRecipient(pass)
	if err != nil {
		return nil, err
	}
	recipient.SetWorkFactor(workFactor)
	var b bytes.Buffer
	lines := armor.NewWriter(&b)
	w, err := age.Encrypt(lines, recipient)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(plain)
	err = errors.Join(err, w.Close(), lines.Close())
	return b.Bytes(), err
}

func newPassphrase(c *urfave.Context, s *cli.IO) *passphrase {
	return &passphrase{file: c.String("passphrase-file"), device: c.String("tpm"), io: s}
}

// fresher is a passphrase that is chosen now.
func fresher(p *passphrase) *passphrase {
	p.fresh = true
	return p
}

// passphrase opens an encrypted owner file. It is asked for once.
type passphrase struct {
	file   string // to read it from, or ""
	device string // the TPM that keeps it, for files tpm:…
	fresh  bool   // ask twice: it is chosen now
	io     *cli.IO
	text   string
}

const maxPassphrase = 1 << 10

func passphraseFlag() urfave.Flag {
	return &urfave.StringFlag{
		Name:  "passphrase-file",
		Usage: "read the passphrase of an encrypted owner file from `FILE` (its first line), or tpm:FILE",
	}
}

// openStore is the owner file that --owner names.
func openStore(c *urfave.Context, s *cli.IO) *store {
	return &store{name: c.String("owner"), passphrase: newPassphrase(c, s)}
}

func (p *passphrase) get(name string) (string, error) {
	if p.text != "" {
		return p.text, nil
	}
	var text string
	var err error
	if p.file != "" {
		var b []byte
		if file, ok := strings.CutPrefix(p.file, keyPrefix); ok {
			b, err = readKept(file, p.device)
		} else {
			b, err = p.io.ReadInput(p.file, maxPassphrase)
		}
		text, _, _ = strings.Cut(string(b), "\n")
		text = strings.TrimSuffix(text, "\r")
		clear(b)
	} else {
		text, err = p.ask(name)
	}
	switch {
	case err != nil:
		return "", cli.Fail(cli.ExitUsage, err)
	case text == "":
		return "", cli.Usagef("the passphrase for %s is empty", name)
	}
	p.text = text
	return text, nil
}

// ask reads the passphrase from the terminal, also where standard input is a file.
func (p *passphrase) ask(name string) (string, error) {
	console := "/dev/tty"
	if runtime.GOOS == "windows" {
		console = "CONIN$"
	}
	tty, err := os.OpenFile(console, os.O_RDWR, 0)
	if err != nil {
		return "", cli.WithHint(fmt.Errorf("no terminal to ask for the passphrase of %s", name),
			"give it with --passphrase-file FILE")
	}
	defer tty.Close()
	text, err := prompt(p.io, tty, "passphrase for "+name+": ")
	if err != nil || !p.fresh {
		return text, err
	}
	again, err := prompt(p.io, tty, "the same again: ")
	if err == nil && again != text {
		err = errors.New("the two passphrases differ")
	}
	return text, err
}

func prompt(s *cli.IO, tty *os.File, text string) (string, error) {
	fmt.Fprint(s.Err, text)
	defer fmt.Fprintln(s.Err)
	b, err := term.ReadPassword(int(tty.Fd()))
	defer clear(b)
	return string(b), err
}

// readSmall reads a file of the user's that holds a key, a certificate or the like.
func readSmall(file string) ([]byte, error) { return regular.ReadInput(file, maxSmall) }

// maxSmall bounds files that hold one key or certificate.
const maxSmall = 64 << 10
