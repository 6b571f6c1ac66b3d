package qtest

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net"
	"strings"
	"testing"
)

// fakeQEMU has memory, a firmware configuration device that reads by DMA, and ports that remember
// what was written.
type fakeQEMU struct {
	memory [2 << 20]byte
	items  map[int][]byte
	ports  map[uint64]uint64
	item   int
	at     int
	lie    string // answers everything, if it is not ""
}

func (f *fakeQEMU) serve(conn net.Conn) {
	in := bufio.NewScanner(conn)
	for in.Scan() {
		answer := f.lie
		if answer == "" {
			answer = f.do(strings.Fields(in.Text()))
		}
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}

func (f *fakeQEMU) do(words []string) string {
	var a, b uint64
	if len(words) > 1 {
		fmt.Sscan(words[1], &a)
	}
	if len(words) > 2 {
		fmt.Sscan(words[2], &b)
	}
	switch words[0] {
	case "b64read":
		return "OK " + base64.StdEncoding.EncodeToString(f.memory[a:a+b])
	case "b64write":
		data, _ := base64.StdEncoding.DecodeString(words[3])
		copy(f.memory[a:], data)
	case "outw":
		f.item, f.at = int(b), 0
	case "inb":
		c := byte(0)
		if item := f.items[f.item]; f.at < len(item) {
			c = item[f.at]
		}
		f.at++
		return fmt.Sprintf("OK 0x%02x", c)
	case "inl":
		return fmt.Sprintf("OK 0x%08x", f.ports[a])
	case "outl":
		if f.ports[a] = b; a == fwDMAPort+4 {
			f.dma()
		}
	default:
		return "FAIL Unknown command"
	}
	return "OK"
}

func (f *fakeQEMU) dma() {
	be := binary.BigEndian
	control := f.memory[scratchControl:]
	item := f.items[int(be.Uint32(control)>>16)]
	n, to := int(be.Uint32(control[4:])), be.Uint64(control[8:])
	copy(f.memory[to:to+uint64(n)], item)
	be.PutUint32(control, 0)
}

func start(t *testing.T, f *fakeQEMU) *Conn {
	t.Helper()
	own, theirs := net.Pipe()
	go f.serve(theirs)
	q := New(own)
	t.Cleanup(func() { _ = q.Close() })
	return q
}

// directory is the item that lists files.
func directory(names ...string) []byte {
	be := binary.BigEndian
	b := be.AppendUint32(nil, uint32(len(names)))
	for i, name := range names {
		b = be.AppendUint16(be.AppendUint16(be.AppendUint32(b, uint32(len(name))), uint16(0x20+i)), 0)
		b = append(b, append([]byte(name), make([]byte, 56-len(name))...)...)
	}
	return b
}

func TestFiles(t *testing.T) {
	f := &fakeQEMU{ports: map[uint64]uint64{}, items: map[int][]byte{
		fwFileDir: directory("etc/a", "etc/acpi/tables"), 0x20: []byte("first"), 0x21: []byte("second, and long"),
	}}
	copy(f.memory[scratchData:], "what was there")
	q := start(t, f)
	list, err := q.Files()
	if err != nil || len(list) != 2 || list[1].Name != "etc/acpi/tables" {
		t.Fatalf("%+v, %v", list, err)
	}
	if b, err := q.ReadFile(list[1]); err != nil || string(b) != "second, and lon" {
		t.Errorf("%q, %v", b, err)
	}
	if got := string(f.memory[scratchData : scratchData+14]); got != "what was there" {
		t.Errorf("the guest's memory holds %q after a read", got)
	}
	for name, want := range map[string]bool{"etc/a": true, "etc/b": false} {
		if has, err := q.HasFile(name); has != want || err != nil {
			t.Errorf("%s: %t, %v", name, has, err)
		}
	}
	if setup, err := q.KernelSetup(); setup != nil || err != nil {
		t.Errorf("without a kernel: %q, %v", setup, err)
	}
	if _, err := q.ReadFile(File{Size: maxItem + 1}); err == nil {
		t.Error("an item beyond the bound is read")
	}
}

func TestPorts(t *testing.T) {
	q := start(t, &fakeQEMU{ports: map[uint64]uint64{}})
	if err := q.Out(0xcf8, 0x80000000); err != nil {
		t.Fatal(err)
	}
	if v, err := q.In(0xcf8); v != 0x80000000 || err != nil {
		t.Errorf("%#x, %v", v, err)
	}
}

// TestLies: answers that do not fit are errors.
func TestLies(t *testing.T) {
	for _, lie := range []string{"FAIL", "OK", "OK zz", "OK AAAA", "", "nonsense"} {
		q := start(t, &fakeQEMU{lie: lie + " "})
		if _, err := q.Read(0, 16); err == nil {
			t.Errorf("%q: memory is read", lie)
		}
		if _, err := q.In(1); err == nil {
			t.Errorf("%q: a port is read", lie)
		}
		if _, err := q.Files(); err == nil {
			t.Errorf("%q: files are listed", lie)
		}
	}
	q := start(t, &fakeQEMU{})
	_ = q.Close()
	if err := q.Write(0, []byte("x")); err == nil {
		t.Error("a closed connection takes a write")
	}
}
