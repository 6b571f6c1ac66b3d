package broker

import (
	"errors"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/refusal"
)

// Codes of denials, besides those of evidence that is not genuine (refusal). After the evidence's
// signature the code is reasonPolicy but for a few: a host that asks with its own chips must not
// learn by trial what the owner expects. The owner's log has the detail.
const (
	reasonMalformed   = "malformed"
	reasonChallenge   = "challenge"
	reasonExpired     = "expired"
	reasonStatement   = "statement"
	reasonKEM         = "kem"
	reasonNoPolicy    = "no-policy"
	reasonNoSecret    = "no-secret"
	reasonBusy        = "busy"
	reasonClock       = "clock"
	reasonPolicy      = "policy"
	reasonMeasurement = "measurement"
	reasonChip        = "chip-not-allowed"
	reasonDebug       = "debug"
	reasonNonce       = "nonce-used"
	reasonLaunchKey   = "launch-has-key"
	reasonClosed      = "launch-closed"
	reasonOnce        = "once"
	reasonMax         = "max"
	reasonCoolDown    = "cool-down"
	reasonPerson      = "denied"
	reasonUnavailable = "unavailable"
	reasonDryRun      = "dry-run"
	reasonToken       = "token"
	reasonRoom        = "secret-room"
)

// retryable are reasons that may be gone by the next attempt.
var retryable = map[string]bool{
	reasonChallenge: true, reasonExpired: true, reasonBusy: true, reasonClock: true, reasonNonce: true,
	reasonMax: true, reasonCoolDown: true, reasonUnavailable: true,
	string(refusal.CRLExpired): true, string(refusal.TCBInfoExpired): true, string(refusal.QEIdentityExpired): true,
	string(refusal.CollateralMissing): true, string(refusal.CRLMissing): true, string(refusal.EKMissing): true,
}

// reasonOf is the code of an error about a request's form.
func reasonOf(err error) string {
	switch {
	case errors.Is(err, exchange.ErrChallenge):
		return reasonChallenge
	case errors.Is(err, exchange.ErrExpired):
		return reasonExpired
	case errors.Is(err, exchange.ErrMismatch):
		return reasonStatement
	}
	return reasonMalformed
}

// verdictReason is the code of a verdict that refuses.
func verdictReason(v *evidence.Verdict) string {
	if !v.Genuine {
		return string(v.Refusal.Reason)
	}
	switch v.Refusal.Reason {
	case refusal.Measurement, refusal.MRTD, refusal.RTMR, refusal.TPMRegisters:
		return reasonMeasurement
	case refusal.ChipNotAllowed, refusal.PlatformNotAllowed:
		return reasonChip
	case refusal.Debug:
		return reasonDebug
	}
	return reasonPolicy
}
