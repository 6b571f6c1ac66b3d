package exchange

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

func TestPacketForm(t *testing.T) {
	good, _ := json.Marshal(Packet{Schema: PacketSchema, Header: make([]byte, 52), Secret: make([]byte, 32)})
	if _, err := ParsePacket(good); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{
		"", "{}", "[]",
		strings.Replace(string(good), "packet/1", "packet/2", 1),
		strings.Replace(string(good), `"header":"AA`, `"header":"`, 1),
	} {
		if _, err := ParsePacket([]byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("%.60s: %v", bad, err)
		}
	}
}

func TestMeasurementRoundTrip(t *testing.T) {
	m := Measurement{
		Schema: MeasurementSchema, Name: "vm", Technology: "sev", Policy: 3, Measurement: make([]byte, 48),
		Claims: &Claims{Firmware: [32]byte{1}, Kernel: &sev.KernelHashes{Kernel: [32]byte{2}, Cmdline: [32]byte{3}}},
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseMeasurement(b)
	if err != nil || got.Claims.Firmware != m.Claims.Firmware || *got.Claims.Kernel != *m.Claims.Kernel {
		t.Errorf("%+v, %v", got, err)
	}
	for old, bad := range map[string]string{
		`"vm"`:                  `"a\nb"`,
		"measurement/1":         "measurement/9",
		`"firmware-sha256":"01`: `"firmware-sha256":"0`,
		`"measurement":"AAAA`:   `"measurement":"`,
	} {
		if _, err := ParseMeasurement([]byte(strings.Replace(string(b), old, bad, 1))); !errors.Is(err, ErrFormat) {
			t.Errorf("with %s: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"schema":"vmlatch.packet/1","header":"","secret":""}`))
	f.Add([]byte(`{"schema":"vmlatch.measurement/1","measurement":"","claims":{"firmware-sha256":""}}`))
	f.Add([]byte(`{"schema":"vmlatch.platform/1","pdh":""}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = ParsePacket(b)
		_, _ = ParseMeasurement(b)
		_, _ = ParsePlatform(b)
	})
}
