package main

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/tpm"
	"github.com/vmlatch/vmlatch/firmware/tpm/quote"
	"github.com/vmlatch/vmlatch/firmware/tpm/seal"
)

// print writes a value as JSON.
func (o *options) print(x any) error {
	b, err := json.MarshalIndent(x, "", "  ")
	if err == nil {
		_, err = o.out.Write(append(b, '\n'))
	}
	return err
}

// with opens the TPM for a command that takes no more arguments.
func (o *options) with(do func(*tpm.Conn) error) error {
	if len(o.args) > 0 {
		return fmt.Errorf("%w: unknown argument %q", errUse, o.args[0])
	}
	c, err := tpm.Open(o.tpm)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c)
}

// identity prints the TPM's keys.
func identity(o *options) error {
	return o.with(func(c *tpm.Conn) error {
		id, err := quote.Read(c)
		if err != nil {
			return err
		}
		return o.print(id)
	})
}

// activate answers a challenge.
func activate(o *options) error {
	if len(o.args) != 1 {
		return fmt.Errorf("%w: activate needs a CREDENTIAL", errUse)
	}
	name := o.args[0]
	o.args = nil
	b, err := o.read(name)
	if err != nil {
		return err
	}
	challenge, err := quote.ParseCredential(b)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return o.with(func(c *tpm.Conn) error {
		answer, err := quote.Activate(c, challenge)
		if err == nil {
			_, err = fmt.Fprintln(o.out, answer)
		}
		return err
	})
}

// read reads a file, or standard input for "-".
func (o *options) read(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(o.in, maxFile))
	}
	return regular.Read(name, maxFile)
}

// makeQuote prints registers that the TPM signs.
func makeQuote(o *options) error {
	nonce, err := challenge(o.nonce)
	if err != nil {
		return fmt.Errorf("%w: --nonce %w, of who asks", errUse, err)
	}
	bank, err := eventlog.BankNamed(o.bank)
	if err != nil {
		return fmt.Errorf("%w: --bank: %w", errUse, err)
	}
	s, err := tpm.ParseSelection(bank, o.pcrs)
	if err != nil {
		return fmt.Errorf("%w: --pcrs: %w", errUse, err)
	}
	var log []byte
	if o.log != "" {
		if log, err = readLog(o.log); err != nil {
			return fmt.Errorf("the event log: %w (mount securityfs on /sys/kernel/security, or --log \"\")", err)
		}
	}
	return o.printQuote(nonce, s, log)
}

// challenge reads what whoever asks for a quote has chosen.
func challenge(text string) ([]byte, error) {
	b, err := hex.DecodeString(text)
	if err != nil || len(b) < quote.MinNonce {
		return nil, fmt.Errorf("must be %d bytes or more in hex", quote.MinNonce)
	}
	return b, nil
}

func (o *options) printQuote(nonce []byte, s tpm.Selection, log []byte) error {
	return o.with(func(c *tpm.Conn) error {
		q, err := quote.Make(c, nonce, s, log)
		if err != nil {
			return err
		}
		return o.print(q)
	})
}

// eventLog is where Linux has the log of the first TPM.
const eventLog = "/sys/kernel/security/tpm0/binary_bios_measurements"

func readLog(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, eventlog.MaxSize)) // its size is not known before
}

// maxSent bounds the log that is sent to a broker, in bytes: base64 twice, it still fits a line of
// latch/1.
const maxSent = 96 << 10

// attest prints a quote over all registers for a broker's challenge, with the log if there is one:
// by it the owner sees which input has changed.
func attest(o *options) error {
	if len(o.args) != 1 {
		return fmt.Errorf("%w: attest needs a challenge in hex", errUse)
	}
	nonce, err := challenge(o.args[0])
	if err != nil {
		return fmt.Errorf("%w: the challenge %w", errUse, err)
	}
	o.args = nil
	s, err := tpm.ParseSelection(eventlog.SHA256, allPCRs)
	if err != nil {
		return err
	}
	log, err := readLog(eventLog)
	if err != nil || len(log) > maxSent {
		log = nil
	}
	return o.printQuote(nonce, s, log)
}

// closeBoot shows whoever looks at the registers from now on that this boot has its secrets.
func closeBoot(o *options) error {
	return o.with(extendClosing)
}

func extendClosing(c *tpm.Conn) error { return c.ExtendPCR(seal.ClosingPCR, []byte(seal.Closing)) }
