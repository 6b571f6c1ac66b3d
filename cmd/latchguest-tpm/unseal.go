package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/luks"
	"github.com/vmlatch/vmlatch/firmware/luks/metadata"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// maxFile bounds files that are read, in bytes.
const maxFile = 64 << 10

// isRefusal reports whether the TPM, or this program, refuses this boot or this disk.
func isRefusal(err error) bool {
	for _, e := range []error{
		tpm2.TPMRCPolicyFail, tpm2.TPMRCPolicy, tpm2.TPMRCIntegrity, seal.ErrPin, seal.ErrOtherTPM, seal.ErrNoToken,
		metadata.ErrUnsafe, luks.ErrFormat,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// unseal prints a secret. It is wiped here; the reader has it then.
func unseal(o *options) error {
	if (o.header == "") == (len(o.args) == 0) {
		return fmt.Errorf("%w: unseal needs a file, or --header", errUse)
	}
	o.pin = strings.TrimPrefix(o.pin, "latch.tpm=") // as latchkey tpm pin prints it
	if o.pin != "" && !seal.IsPin(o.pin) {
		return fmt.Errorf("%w: --pin must be what latchkey tpm pin printed", errUse)
	}
	c, err := tpm.Open(o.tpm)
	if err != nil {
		return err
	}
	defer c.Close()
	secret, err := o.ask(c)
	if errors.Is(err, seal.ErrPin) {
		err = foreign(err)
	}
	if err != nil {
		return err
	}
	defer clear(secret)
	if o.close { // first: what cannot be closed is not handed on
		if err := extendClosing(c); err != nil {
			return err
		}
	}
	if o.pin != "" {
		if err := seal.CheckPin(secret, o.pin); err != nil {
			return foreign(err)
		}
	}
	_, err = o.out.Write(secret)
	return err
}

func foreign(err error) error {
	return &tpm.Error{
		Doing: "unseal", Cause: "a different secret was sealed", Err: err,
		Fix: "the disk, or its header, is not its owner's; after a change of the secret change latch.tpm=",
	}
}

// readHeader reads a header, which may be that of a disk, and only with --rewrite makes a copy of
// one what cryptsetup may use.
func (o *options) readHeader() (*metadata.Metadata, error) {
	if !o.rewrite {
		f, err := os.Open(o.header)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return metadata.Read(f)
	}
	f, err := os.OpenFile(o.header, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%w: --rewrite is for a copy of a header, in a file", errUse))
	}
	return metadata.Use(f)
}

// ask asks the TPM for the secret of a file or of a disk's header.
func (o *options) ask(c *tpm.Conn) ([]byte, error) {
	if o.header != "" {
		m, err := o.readHeader()
		if err != nil {
			return nil, err
		}
		return seal.UnsealDisk(c, m, o.pin)
	}
	b, err := regular.Read(o.args[0], maxFile)
	if err != nil {
		return nil, err
	}
	s, err := seal.ParseSealed(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.args[0], err)
	}
	var approvals []*seal.Approval
	for _, name := range o.args[1:] {
		b, err := regular.Read(name, maxFile)
		if err != nil {
			return nil, err
		}
		a, err := seal.ParseApproval(b)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		approvals = append(approvals, a)
	}
	return s.Unseal(c, approvals)
}

// revoke ends older approvals.
func revoke(o *options) error {
	if len(o.args) != 1 {
		return fmt.Errorf("%w: revoke needs a VERSION", errUse)
	}
	version, err := strconv.ParseUint(o.args[0], 10, 63)
	if err != nil || version == 0 {
		return fmt.Errorf("%w: VERSION must be a number of 1 or more", errUse)
	}
	c, err := tpm.Open(o.tpm)
	if err != nil {
		return err
	}
	defer c.Close()
	now, err := seal.EndBelow(c, version)
	if err == nil {
		fmt.Fprintf(o.err, "latchguest-tpm: approvals of versions below %d do not count any more\n", now)
	}
	return err
}
