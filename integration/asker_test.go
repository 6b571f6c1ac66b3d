package integration

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/swtee"
	"github.com/vmlatch/vmlatch/firmware/swtee/attest"
)

// asker is a guest of SEV-SNP that lives in this process: only its reports are real. It talks to
// the broker's program in a moment, and says what no guest would.
type asker struct {
	*exchange.Agent
	t      *testing.T
	amd    *attest.AMD
	launch [32]byte             // REPORT_ID
	change func(*report.Report) // of what the platform signs
	conn   net.Conn
	r      *bufio.Reader
}

// measured is what every asker has loaded.
var measured = [48]byte{0x11, 0x11}

// askersDesk is the owner's policy for askers.
func (b *broker) askersDesk(releases string) {
	b.t.Helper()
	b.ownersDesk(fmt.Sprintf("schema = \"latch-policy/1\"\nname = \"test-emulated\"\nkem = [\"x25519\"]\n"+
		"[emulated]\nroot = \"root.pem\"\n[sev-snp]\ndigests = [%q]\nchips = [%q]\nhost-acpi = \"accept\"\n"+
		"policy = [\"smt\"]\n%s", hex.EncodeToString(measured[:]), hex.EncodeToString(b.chip()), releases))
}

// amd is the emulated platform.
func (b *broker) amd() *attest.AMD {
	b.t.Helper()
	p, err := swtee.OpenPlatform(platformDir())
	if err != nil {
		b.t.Fatal(err)
	}
	amd, err := p.AMD()
	if err != nil {
		b.t.Fatal(err)
	}
	return amd
}

// chip is the platform's CHIP_ID.
func (b *broker) chip() []byte {
	b.t.Helper()
	text, err := b.amd().Report(report.Report{}, attest.How{Version: attest.ReportVersion})
	if err != nil {
		b.t.Fatal(err)
	}
	return text[0x1a0:0x1e0] // SNP ABI, table 23
}

// asker begins a launch.
func (b *broker) asker() *asker {
	b.t.Helper()
	a := &asker{t: b.t, amd: b.amd()}
	key, err := exchange.ParseKey(b.pin[len("latch.key="):])
	if err != nil {
		b.t.Fatal(err)
	}
	seed := make([]byte, 32)
	_, _ = rand.Read(seed) // never fails (crypto/rand)
	_, _ = rand.Read(a.launch[:])
	a.Agent, err = exchange.NewAgent(exchange.AgentConfig{
		Broker: key, Name: "test-emulated", Technology: exchange.SNP, Secrets: []string{"disk"}, KEM: exchange.X25519,
		Seed: seed,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	return a
}

// dial connects to the broker.
func (a *asker) dial(socket string) {
	a.t.Helper()
	if a.conn != nil {
		_ = a.conn.Close()
	}
	conn, err := net.Dial("unix", socket)
	if err != nil {
		a.t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	a.conn, a.r = conn, bufio.NewReaderSize(conn, exchange.MaxLine)
	a.t.Cleanup(func() { _ = conn.Close() })
}

// says sends a line and returns the broker's; nil if it hangs up.
func (a *asker) says(line []byte) []byte {
	a.t.Helper()
	if _, err := a.conn.Write(line); err != nil {
		return nil
	}
	answer, err := a.r.ReadBytes('\n')
	if err != nil {
		return nil
	}
	return answer
}

// request goes up to the line that asks for the secret.
func (a *asker) request() []byte {
	a.t.Helper()
	var hello [16]byte
	_, _ = rand.Read(hello[:])
	data, err := a.Challenge(a.says(a.Ask(hello)))
	if err != nil {
		a.t.Fatal(err)
	}
	line, err := a.Request(a.report(data), nil, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	return line
}

// report is the platform's over some data.
func (a *asker) report(data [64]byte) []byte {
	a.t.Helper()
	r := report.Report{
		Policy: sev.SNPPolicyDefault, ReportData: data, Measurement: measured, ReportID: a.launch, VMPL: 0,
	}
	for i := range r.ReportIDMA {
		r.ReportIDMA[i] = 0xff
	}
	if a.change != nil {
		a.change(&r)
	}
	b, err := a.amd.Report(r, attest.How{Version: attest.ReportVersion})
	if err != nil {
		a.t.Fatal(err)
	}
	return b
}

// asks goes through the whole exchange.
func (a *asker) asks(socket string) *exchange.Answer {
	a.t.Helper()
	a.dial(socket)
	answer, err := a.Answer(a.says(a.request()))
	if err != nil {
		a.t.Fatal(err)
	}
	return answer
}
