package evidence

import (
	"bytes"
	"encoding/hex"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
	"github.com/vmlatch/vmlatch/firmware/tpm/verify"
)

// TrustHost is the trust of evidence that a host could have made up.
const TrustHost = "host"

// judgeTPM judges the quote of a guest's TPM. Its root is what the owner was told of the TPM.
func (v *Verdict) judgeTPM(e *Evidence, d *Demands) error {
	v.Trust, v.Emulated = TrustHost, false
	if d.TPM == nil {
		return refusal.New(refusal.NoPolicy)
	}
	k, got, err := d.TPM.Genuine(e.TPM)
	if err != nil {
		return err
	}
	v.Genuine, v.Root, v.Chip = true, "the TPM's attestation key", hex.EncodeToString(k.EK)
	if err := d.TPM.Check(got.Facts); err != nil {
		v.Explained = d.inputs(got)
		return err
	}
	if v.booted, err = d.TPM.Selection.Digest(d.TPM.Values); err != nil {
		return err
	}
	v.LogMatches, v.open = got.Log != nil, isZero(got.Values[seal.ClosingPCR])
	v.say(true, "a TPM that you know has signed the registers, and the challenge of now", "")
	v.say(true, "PCR "+d.TPM.Selection.String()+" have the values that you expect", "")
	v.say(v.LogMatches, "the event log leads to the registers of the TPM", "")
	v.say(false, "", "anything against the host: the TPM is the host's, which could have made all of this up,"+
		" and reads the guest's memory (trust: host)")
	for _, h := range d.TPM.Holds {
		v.say(false, "", "the condition that "+h)
	}
	v.common()
	return nil
}

// isZero reports whether a register is there, and nothing has been measured into it.
func isZero(register []byte) bool {
	return len(register) > 0 && bytes.Equal(register, make([]byte, len(register)))
}

// inputs says which inputs of the boot changed, where log and prediction tell.
func (d *Demands) inputs(got *verify.Verified) (why []string) {
	if got.Log == nil || d.TPM.Inputs == nil {
		return nil
	}
	findings, err := predict.Explain(d.TPM.Inputs, d.TPM.Prediction, got.Log, eventlog.SHA256)
	if err != nil {
		return nil
	}
	for _, n := range d.TPM.Selection.PCRs {
		if f := findings[n]; f.Verdict == predict.Differs {
			why = append(why, strings.Join(f.Why, "; "))
		}
	}
	return why
}
