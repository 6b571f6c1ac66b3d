package tpm

import (
	"crypto"
	_ "crypto/sha256" // the hash of policies and quotes
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// Registers is how many a bank has (TCG PC Client Platform TPM Profile 1.05, section 4.6).
const Registers = 24

// Selection is some registers of a bank.
type Selection struct {
	Bank eventlog.Bank
	PCRs []int // ascending, each once
}

// ParseSelection reads numbers of registers, such as 4,7,9.
func ParseSelection(bank eventlog.Bank, text string) (Selection, error) {
	s := Selection{Bank: bank}
	for _, word := range strings.Split(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(word))
		if err != nil || n < 0 || n >= Registers {
			return s, fmt.Errorf("%q: must be registers from 0 to %d, such as 4,7,9", text, Registers-1)
		}
		s.PCRs = append(s.PCRs, n)
	}
	slices.Sort(s.PCRs)
	s.PCRs = slices.Compact(s.PCRs)
	return s, nil
}

// String is the registers alone, as ParseSelection reads them.
func (s Selection) String() string {
	words := make([]string, len(s.PCRs))
	for i, n := range s.PCRs {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

// List is the selection as commands of a TPM have it (part 2, section 10.9.7).
func (s Selection) List() tpm2.TPMLPCRSelection {
	bits := make([]byte, Registers/8)
	for _, n := range s.PCRs {
		bits[n/8] |= 1 << (n % 8)
	}
	return tpm2.TPMLPCRSelection{
		PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMIAlgHash(s.Bank), PCRSelect: bits}},
	}
}

// Digest is the SHA-256 of the registers' values in their order, which quotes and policies have.
func (s Selection) Digest(values map[int][]byte) ([]byte, error) {
	h := crypto.SHA256.New()
	for _, n := range s.PCRs {
		if len(values[n]) != s.Bank.Hash().Size() {
			return nil, fmt.Errorf(
				"PCR %d has %d bytes, must have %d in bank %v",
				n,
				len(values[n]),
				s.Bank.Hash().Size(),
				s.Bank,
			)
		}
		h.Write(values[n])
	}
	return h.Sum(nil), nil
}

// maxReads bounds how often registers are read: a TPM gives some at a time, at least one.
const maxReads = Registers

// ReadPCRs reads registers.
func (c *Conn) ReadPCRs(s Selection) (map[int][]byte, error) {
	values := map[int][]byte{}
	left := s
	for range maxReads {
		r, err := tpm2.PCRRead{PCRSelectionIn: left.List()}.Execute(c)
		if err != nil {
			return nil, Explain("read registers", err)
		}
		var got []int
		for _, x := range r.PCRSelectionOut.PCRSelections {
			if x.Hash != tpm2.TPMIAlgHash(s.Bank) {
				continue
			}
			for _, n := range left.PCRs {
				if n/8 < len(x.PCRSelect) && x.PCRSelect[n/8]&(1<<(n%8)) != 0 {
					got = append(got, n)
				}
			}
		}
		if len(got) == 0 {
			return nil, &Error{
				Doing: "read registers", Cause: fmt.Sprintf("it has no bank %v", s.Bank), Err: ErrAnswer,
				Fix: "use a bank that it has: tpm2_getcap pcrs; for a vTPM see banks in the spec's [tpm]",
			}
		}
		if len(got) != len(r.PCRValues.Digests) {
			return nil, &Error{
				Doing: "read registers",
				Cause: "the TPM's answer is odd",
				Fix:   fixGone,
				Err:   ErrAnswer,
			}
		}
		for i, n := range got {
			values[n] = r.PCRValues.Digests[i].Buffer
		}
		left.PCRs = slices.DeleteFunc(slices.Clone(left.PCRs), func(n int) bool { return slices.Contains(got, n) })
		if len(left.PCRs) == 0 {
			return values, nil
		}
	}
	return nil, &Error{Doing: "read registers", Cause: "the TPM's answer is odd", Fix: fixGone, Err: ErrAnswer}
}

// ExtendPCR extends a register by data, in all banks (part 3, section 22.3, TPM2_PCR_Event).
func (c *Conn) ExtendPCR(pcr int, data []byte) error {
	_, err := tpm2.PCREvent{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(pcr), Auth: tpm2.PasswordAuth(nil)},
		EventData: tpm2.TPM2BEvent{Buffer: data},
	}.Execute(c)
	return Explain(fmt.Sprintf("extend PCR %d", pcr), err)
}
