package tpm

import (
	"errors"

	"github.com/google/go-tpm/tpm2"
)

// Error says what a TPM refuses, why, and what helps.
type Error struct {
	Doing string // what was tried
	Cause string
	Fix   string
	Err   error // of the TPM, or of the way to it
}

func (e *Error) Error() string {
	s := e.Cause
	if e.Doing != "" {
		s = e.Doing + ": " + s
	}
	if e.Err != nil {
		s += " (" + e.Err.Error() + ")"
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

const fixGone = "see the kernel's log (dmesg | grep -i tpm); power the machine off and on again, or restart the VM"

// refusals explains response codes (part 2, section 6.6.3). The first that fits counts.
var refusals = [...]struct {
	code       tpm2.TPMRC
	cause, fix string
}{
	{
		tpm2.TPMRCLockout, "it is locked, after too many wrong passwords or starts without an orderly end",
		"wait (tpm2_getcap properties-variable says how long), or tpm2_dictionarylockout --clear-lockout",
	},
	{
		tpm2.TPMRCFailure, "it is in failure mode: its self test failed",
		"power the machine off and on again; for a vTPM restart the VM; if it stays so, the TPM is broken",
	},
	{
		tpm2.TPMRCInitialize, "it is not started (TPM2_Startup)",
		"the firmware starts it: switch the TPM on in the firmware's setup",
	},
	{
		tpm2.TPMRCNVSpace, "its memory is full",
		"remove what is not needed: tpm2_getcap handles-nv-index, tpm2_nvundefine; " +
			"tpm2_getcap handles-persistent, tpm2_evictcontrol",
	},
	{
		tpm2.TPMRCObjectMemory, "it has no room for further keys",
		"use the device with a resource manager, " + Device + ", or flush keys: tpm2_flushcontext -t",
	},
	{tpm2.TPMRCSessionMemory, "it has no room for further sessions", "flush them: tpm2_flushcontext -l -s"},
	{tpm2.TPMRCSessionHandles, "it has no room for further sessions", "flush them: tpm2_flushcontext -l -s"},
	{
		tpm2.TPMRCPolicyFail, "the state of the machine is not the one that the policy wants",
		"something that is measured has changed: compare the registers (latchkey pcrs --log)",
	},
	{tpm2.TPMRCPCRChanged, "a register changed meanwhile", "try again"},
	{
		tpm2.TPMRCIntegrity, "this was not made for this TPM, or for its former storage root key",
		"a cleared or reset TPM has new keys: seal again, to its present one",
	},
	{tpm2.TPMRCAuthFail, "the password is wrong", "a TPM locks itself after some wrong ones"},
	{tpm2.TPMRCBadAuth, "the password is wrong", "if the owner hierarchy has a password, clear it for this"},
	{tpm2.TPMRCCurve, "it has no such elliptic curve", "use a key on the curve P-256, or keep the key in a file"},
	{tpm2.TPMRCHash, "it has no such hash algorithm or bank of registers", "use sha256, which all TPMs have"},
	{tpm2.TPMRCHandle, "there is nothing under this handle", "tpm2_getcap handles-persistent lists them"},
	{tpm2.TPMRCNVUninitialized, "the index was never written", "the TPM was not made by vmlatch, or is damaged"},
	{tpm2.TPMRCNVDefined, "the index exists already", "tpm2_nvundefine removes it"},
	{tpm2.TPMRCSignature, "the signature is wrong", "was it made by this key, and for this?"},
}

// Explain gives an error of a TPM its cause and what helps. Others, and nil, stay as they are.
func Explain(doing string, err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	for _, r := range refusals {
		if errors.Is(err, r.code) {
			return &Error{Doing: doing, Cause: r.cause, Fix: r.fix, Err: err}
		}
	}
	var code tpm2.TPMRC
	if errors.As(err, &code) {
		return &Error{Doing: doing, Cause: "the TPM refuses", Fix: fixGone, Err: err}
	}
	return err
}
