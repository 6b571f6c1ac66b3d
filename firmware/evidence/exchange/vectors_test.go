package exchange

import (
	"bytes"
	"crypto/hpke"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

type vectorFile struct {
	Pin     string
	Vectors []json.RawMessage
}

type vector struct {
	KEM, Technology                     string
	Message1                            string
	Challenge, Release, Denial, Pending json.RawMessage
	Status, StatusDenied, Injected      json.RawMessage
	Statement, Plaintext, Info          []byte
	Receipt                             string
	PrivateKey, PublicKey, ReceiptKey   []byte
	ReportData                          string
	AuditMAC                            string
	Refuse, Kind, Side, Why             string
	Value                               json.RawMessage
}

// names are the vectors' names of fields that are not those of Go.
func parseVector(t *testing.T, raw json.RawMessage) *vector {
	t.Helper()
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{
		"status_denied": "StatusDenied", "private_key": "PrivateKey", "public_key": "PublicKey",
		"receipt_key": "ReceiptKey", "report_data": "ReportData", "audit_mac_sha256": "AuditMAC",
	} {
		if v, ok := m[from]; ok {
			m[to] = v
		}
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	v := &vector{}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
	return v
}

func compact(t *testing.T, raw json.RawMessage) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// eachFile runs f for the vectors of each file that this machine has.
func eachFile(t *testing.T, f func(t *testing.T, pin Key, list []*vector)) {
	t.Helper()
	for _, name := range append([]string{"testdata/vectors.json"}, vectors.More("latch-exchange-vectors/2")...) {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var file vectorFile
		if err := json.Unmarshal(b, &file); err != nil {
			t.Fatal(err)
		}
		var list []*vector
		for _, raw := range file.Vectors {
			list = append(list, parseVector(t, raw))
		}
		pin, err := ParseKey(file.Pin)
		if err != nil {
			t.Fatal(err)
		}
		f(t, pin, list)
	}
}

// agentOf is the agent of a vector, as far as it has come.
func agentOf(t *testing.T, pin Key, v *vector) *Agent {
	t.Helper()
	var s Statement
	if err := decode(v.Statement, &s); err != nil {
		t.Fatal(err)
	}
	k, err := kemNamed(v.KEM)
	if err != nil {
		t.Fatal(err)
	}
	a := &Agent{pin: pin, name: s.Name, technology: v.Technology, secrets: s.Secrets, kem: v.KEM}
	if a.key, err = k.NewPrivateKey(v.PrivateKey); err != nil {
		t.Fatal(err)
	}
	var ask Ask
	if err := decode([]byte(v.Message1), &ask); err != nil {
		t.Fatal(err)
	}
	a.hello = ask.Hello
	return a
}

// challenged is an agent that has its challenge.
func challenged(t *testing.T, pin Key, v *vector) *Agent {
	t.Helper()
	a := agentOf(t, pin, v)
	if _, err := a.Challenge(compact(t, v.Challenge)); err != nil {
		t.Fatal(err)
	}
	return a
}

func TestVectors(t *testing.T) {
	eachFile(t, func(t *testing.T, pin Key, list []*vector) {
		for _, v := range list {
			if v.Refuse != "" {
				continue
			}
			t.Run(v.KEM, func(t *testing.T) { holdVector(t, pin, v) })
		}
	})
}

func holdVector(t *testing.T, pin Key, v *vector) {
	a := agentOf(t, pin, v)
	if got := a.key.PublicKey().Bytes(); !bytes.Equal(got, v.PublicKey) {
		t.Errorf("public key %x, want %x", got, v.PublicKey)
	}
	if got := a.Ask(a.hello); string(got) != v.Message1+"\n" {
		t.Errorf("message 1 is %s, want %s", got, v.Message1)
	}
	if _, err := ReadAsk([]byte(v.Message1)); err != nil {
		t.Errorf("the broker reads message 1: %v", err)
	}
	data, err := a.Challenge(compact(t, v.Challenge))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a.statement, v.Statement) {
		t.Errorf("statement %s, want %s", a.statement, v.Statement)
	}
	if got := SHA512(data).String(); got != v.ReportData {
		t.Errorf("report data %s, want %s", got, v.ReportData)
	}
	if got := info(a.hash); !bytes.Equal(got, v.Info) {
		t.Errorf("info %x, want %x", got, v.Info)
	}
	got, err := a.Answer(compact(t, v.Release))
	if err != nil {
		t.Fatal(err)
	}
	if plain := encode(&secrets{Version: Version, Secrets: got.Secrets}); !bytes.Equal(plain, v.Plaintext) {
		t.Errorf("secrets %s, want %s", plain, v.Plaintext)
	}
	if string(got.Receipt) != v.Receipt+"\n" {
		t.Errorf("receipt %s, want %s", got.Receipt, v.Receipt)
	}
	if hash, mac, err := ReadReceipt([]byte(v.Receipt)); err != nil || hash != a.hash || mac.String() != v.AuditMAC {
		t.Errorf("the broker reads the receipt of %v with %v, %v, want %s", hash, mac, err, v.AuditMAC)
	}
	if got, err := a.Answer(compact(t, v.Denial)); err != nil || got.Denial.Reason != "tcb-below-minimum" {
		t.Errorf("denial: %+v, %v", got, err)
	}
	if got, err := a.Answer(compact(t, v.Pending)); err != nil || got.Pending.Request != 7 || got.Pending.Retry != 5 {
		t.Errorf("pending: %+v, %v", got, err)
	}
	if s, err := ReadStatus(compact(t, v.Status), pin, a.hash); err != nil || s.State != Received {
		t.Errorf("status: %+v, %v", s, err)
	}
	if s, err := ReadStatus(compact(t, v.StatusDenied), pin, a.hash); err != nil || s.State != Denied ||
		s.Reason == "" {
		t.Errorf("status of a denial: %+v, %v", s, err)
	}
	value := map[string][]byte{"disk": []byte("correct horse")}
	if err := CheckInjected(compact(t, v.Injected), pin, "appliance", value); err != nil {
		t.Errorf("injected: %v", err)
	}
	value["disk"] = []byte("of the host's")
	if err := CheckInjected(compact(t, v.Injected), pin, "appliance", value); err == nil {
		t.Error("another secret than the broker gave is taken")
	}
	s, hash, err := requestTo(t, pin, v, v.Statement)
	if err != nil || hash != a.hash || s.ReportData != data {
		t.Errorf("the broker reads the request: %v", err)
	} else if err := s.Statement.CanSeal(v.KEM); err != nil {
		t.Errorf("the broker could seal: %v", err)
	}
}

// requestTo is how the broker of a vector reads a statement.
func requestTo(t *testing.T, pin Key, v *vector, statement []byte) (*Shown, SHA512, error) {
	t.Helper()
	var e Envelope
	if err := decode(compact(t, v.Challenge), &e); err != nil {
		t.Fatal(err)
	}
	var c Challenge
	if err := decode(e.Payload, &c); err != nil {
		t.Fatal(err)
	}
	until, err := time.Parse(time.RFC3339, c.Expires)
	if err != nil {
		t.Fatal(err)
	}
	b := &Broker{Key: pin, instance: c.Instance}
	return b.ReadRequest(encode(&Request{
		Want: WantRelease, Version: Version, Challenge: e, Statement: statement, Evidence: []byte("evidence"),
	}), until.Add(-time.Second))
}

// TestVectorsRefused: what must be refused is, by the side that must.
func TestVectorsRefused(t *testing.T) {
	eachFile(t, func(t *testing.T, pin Key, list []*vector) {
		var first *vector
		for _, v := range list {
			if v.Refuse == "" && first == nil {
				first = v
			}
		}
		if first == nil {
			t.Fatal("there is no vector that is taken")
		}
		for _, v := range list {
			if v.Refuse == "" {
				continue
			}
			t.Run(v.Refuse, func(t *testing.T) {
				if err := offer(t, pin, first, v); err == nil {
					t.Errorf("%s: is taken", v.Why)
				} else {
					t.Log(err)
				}
			})
		}
	})
}

// offer shows a message to the side that must refuse it.
func offer(t *testing.T, pin Key, first, v *vector) error {
	t.Helper()
	text := func() (b []byte) {
		var s string
		if err := json.Unmarshal(v.Value, &s); err != nil {
			t.Fatal(err)
		}
		return []byte(s)
	}
	switch v.Side + " " + v.Kind {
	case "agent challenge":
		_, err := agentOf(t, pin, first).Challenge(compact(t, v.Value))
		return err
	case "agent release":
		var e Envelope
		if err := decode(compact(t, v.Value), &e); err != nil {
			return err
		}
		_, err := challenged(t, pin, first).release(&e)
		return err
	case "agent denial":
		_, err := challenged(t, pin, first).Answer(compact(t, v.Value))
		return err
	case "broker statement":
		b, err := base64.StdEncoding.DecodeString(string(text()))
		if err != nil {
			t.Fatal(err)
		}
		s, _, err := requestTo(t, pin, first, b)
		if err == nil {
			allowed := []string{Hybrid}
			if v.Refuse != "statement-kem" {
				allowed = append(allowed, X25519)
			}
			err = s.Statement.CanSeal(allowed...)
		}
		return err
	case "broker receipt":
		hash, mac, err := ReadReceipt(text())
		if err == nil && (mac.String() != first.AuditMAC || hash != hashOf(first.Statement)) {
			err = ErrAnswer
		}
		return err
	}
	t.Fatalf("no side %s for a %s", v.Side, v.Kind)
	return nil
}

// TestKnownExport: the receipt's key is the one of the vectors, on the sender's side, too.
func TestKnownExport(t *testing.T) {
	eachFile(t, func(t *testing.T, pin Key, list []*vector) {
		for _, v := range list {
			if v.Refuse != "" {
				continue
			}
			a := challenged(t, pin, v)
			var e Envelope
			var r Release
			if err := decode(compact(t, v.Release), &e); err != nil {
				t.Fatal(err)
			}
			if err := decode(e.Payload, &r); err != nil {
				t.Fatal(err)
			}
			from, err := hpke.NewRecipient(
				r.Ciphertext[:encSize(v.KEM)], a.key, hpke.HKDFSHA256(), hpke.AES256GCM(), info(a.hash),
			)
			if err != nil {
				t.Fatal(err)
			}
			key, err := from.Export(exporter, 32)
			if err != nil || !bytes.Equal(key, v.ReceiptKey) {
				t.Errorf("%s: receipt key %x, %v, want %x", v.KEM, key, err, v.ReceiptKey)
			}
			mac := receiptMAC(key, e.Payload)
			if got := SHA256(sha256.Sum256(mac[:])).String(); got != v.AuditMAC {
				t.Errorf("%s: hash of the MAC %s, want %s", v.KEM, got, v.AuditMAC)
			}
		}
	})
}
