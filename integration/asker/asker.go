// Package asker is a guest of SEV-SNP that lives in the caller's process: only its reports are
// those of the emulated platform. It talks to a broker's program in a moment, and can say what no
// guest would.
package asker

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
)

// measured is the digest of what every asker has loaded.
func measured() [48]byte { return [48]byte{0x11, 0x11} }

// Name is the policy that it asks by.
const Name = "test-emulated"

// Asker is one launch.
type Asker struct {
	*exchange.Agent
	Launch [32]byte             // REPORT_ID
	Change func(*report.Report) // of what the platform signs; nil for none
	Conn   net.Conn
	R      *bufio.Reader
	amd    *attest.AMD
}

// New begins a launch on the platform whose keys are in a directory; pin is the broker's key as on
// a command line.
func New(platform, pin string) (*Asker, error) {
	a := &Asker{}
	p, err := swtee.OpenPlatform(platform)
	if err != nil {
		return nil, err
	}
	if a.amd, err = p.AMD(); err != nil {
		return nil, err
	}
	key, err := exchange.ParseKey(strings.TrimPrefix(pin, "latch.key="))
	if err != nil {
		return nil, err
	}
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails (crypto/rand)
	_, _ = rand.Read(a.Launch[:])
	a.Agent, err = exchange.NewAgent(exchange.AgentConfig{
		Broker: key, Name: Name, Technology: exchange.SNP, Secrets: []string{"disk"}, KEM: exchange.X25519, Seed: seed,
	})
	return a, err
}

// Policy is the head of an owner's policy for askers, whose root is in root.pem.
func (a *Asker) Policy() (string, error) {
	text, err := a.amd.Report(report.Report{}, attest.How{Version: attest.ReportVersion})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("schema = \"latch-policy/1\"\nname = %q\nkem = [\"x25519\"]\n[emulated]\nroot = \"root.pem\"\n"+
		"[sev-snp]\ndigests = [\"%x\"]\nchips = [\"%x\"]\nhost-acpi = \"accept\"\npolicy = [\"smt\"]\n",
		Name, measured(), text[0x1a0:0x1e0]), nil // CHIP_ID (SNP ABI, table 23)
}

// Dial connects to the broker, anew if it was connected before.
func (a *Asker) Dial(socket string) (err error) {
	a.Close()
	if a.Conn, err = net.Dial("unix", socket); err != nil {
		return err
	}
	a.R = bufio.NewReaderSize(a.Conn, exchange.MaxLine)
	return a.Conn.SetDeadline(time.Now().Add(30 * time.Second))
}

// Close hangs up.
func (a *Asker) Close() {
	if a.Conn != nil {
		_ = a.Conn.Close()
	}
}

// Say sends a line and returns the broker's.
func (a *Asker) Say(line []byte) ([]byte, error) {
	if _, err := a.Conn.Write(line); err != nil {
		return nil, err
	}
	return a.R.ReadBytes('\n')
}

// Prepare goes up to the line that asks for the secret.
func (a *Asker) Prepare() ([]byte, error) {
	data, err := a.Challenged()
	if err != nil {
		return nil, err
	}
	b, err := a.Report(data)
	if err != nil {
		return nil, err
	}
	return a.Request(b, nil, nil)
}

// Challenged asks for a challenge, and returns what evidence must be over.
func (a *Asker) Challenged() (data [64]byte, err error) {
	var hello [16]byte
	_, _ = rand.Read(hello[:]) // never fails (crypto/rand)
	line, err := a.Say(a.Ask(hello))
	if err != nil {
		return data, err
	}
	return a.Challenge(line)
}

// Report is the platform's over some data.
func (a *Asker) Report(data [64]byte) ([]byte, error) {
	r := report.Report{
		Policy: sev.SNPPolicyDefault, ReportData: data, Measurement: measured(), ReportID: a.Launch, VMPL: 0,
	}
	for i := range r.ReportIDMA { // there is no migration agent
		r.ReportIDMA[i] = 0xff
	}
	if a.Change != nil {
		a.Change(&r)
	}
	return a.amd.Report(r, attest.How{Version: attest.ReportVersion})
}

// Asks goes through the whole exchange.
func (a *Asker) Asks(socket string) (*exchange.Answer, error) {
	if err := a.Dial(socket); err != nil {
		return nil, err
	}
	line, err := a.Prepare()
	if err != nil {
		return nil, err
	}
	if line, err = a.Say(line); err != nil {
		return nil, err
	}
	return a.Answer(line)
}
