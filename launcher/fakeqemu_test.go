package launcher

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/ovmf/ovmftest"
	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/integration/leak"
	"github.com/vmlatch/vmlatch/launcher/internal/testhost"
	"github.com/vmlatch/vmlatch/launcher/logkeeper"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp/qmptest"
)

// The test binary is also the programs that a start runs: QEMU, the owner's command,
// and a helper.
const (
	roleVar   = "VMLATCH_TEST_ROLE"   // qemu, as what the plan's program plays
	faultsVar = "VMLATCH_TEST_FAULTS" // JSON: what goes wrong, by command
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "owner":
			os.Exit(playOwner(os.Args[2]))
		case "helper":
			os.Exit(playHelper(os.Args[2:]))
		case plan.KeepLogs:
			os.Exit(logkeeper.Main(os.Args[2:]))
		}
	}
	if os.Getenv(roleVar) == "qemu" {
		os.Exit(playQEMU(os.Args))
	}
	leak.VerifyTestMain(m)
}

// Faults of the fake QEMU, by command; "start" is before it listens to anything.
const (
	silent  = "silent"  // no answer
	hangup  = "hangup"  // the connection ends
	dies    = "dies:"   // QEMU ends, and writes the rest to its log
	refuses = "error:"  // an error with the rest as its words
	returns = "return:" // JSON
)

func playQEMU(argv []string) int {
	faults := map[string]string{}
	if err := json.Unmarshal([]byte(os.Getenv(faultsVar)), &faults); err != nil {
		panic(err)
	}
	die := func(text string) {
		fmt.Fprintln(os.Stderr, "qemu-system-x86_64: "+text)
		os.Exit(1)
	}
	signal.Ignore(unix.SIGINT)
	switch start := faults["start"]; {
	case strings.HasPrefix(start, dies):
		die(start[len(dies):])
	case start == silent:
		time.Sleep(time.Hour)
	}
	o := plan.ParseOptions(argv)
	q := qmptest.NewQEMU()
	playPlatform(q, o)
	playProbe(q)
	var events *os.File
	q.On("system_powerdown", func(json.RawMessage) (any, error) {
		const line = `{"timestamp": {"seconds": %d, "microseconds": 0}, "event": "SHUTDOWN", ` +
			`"data": {"guest": true, "reason": "guest-shutdown"}}` + "\r\n"
		time.AfterFunc(20*time.Millisecond, func() { // the guest takes its time
			if _, err := fmt.Fprintf(events, line, time.Now().Unix()); err != nil {
				panic(err)
			}
			os.Exit(0)
		})
		return struct{}{}, nil
	})
	for command, fault := range faults {
		q.On(command, func(json.RawMessage) (any, error) {
			switch {
			case fault == silent:
				return nil, qmptest.ErrSilence
			case fault == hangup:
				return nil, qmptest.ErrHangup
			case strings.HasPrefix(fault, dies):
				die(fault[len(dies):])
			case strings.HasPrefix(fault, refuses):
				return nil, errors.New(fault[len(refuses):])
			}
			return json.RawMessage(strings.TrimPrefix(fault, returns)), nil
		})
	}
	for _, chardev := range o.Values["-chardev"] {
		p := plan.Properties(chardev)
		fd, _ := strconv.Atoi(p["fd"])
		f := os.NewFile(uintptr(fd), p["id"])
		if p["id"] == "events" || p["id"] == "ask" {
			if set, ok := strings.CutPrefix(p["logfile"], "/dev/fdset/"); ok {
				fd, _ := strconv.Atoi(set) // the sets are numbered as their descriptors
				events = os.NewFile(uintptr(fd), "events.log")
			}
			c, err := net.FileConn(f)
			if err != nil {
				panic(err)
			}
			_ = f.Close() // c has its own
			go func() { _ = q.Serve(c) }()
			continue
		}
		l, err := net.FileListener(f)
		if err != nil {
			panic(err)
		}
		go q.Listen(l)
	}
	select {}
}

// playProbe answers what a QEMU without a machine is asked.
func playProbe(q *qmptest.QEMU) {
	const schema = `[
		{"name": "object-add", "meta-type": "command", "arg-type": "1"},
		{"name": "1", "meta-type": "object", "variants": [{"case": "sev-guest", "type": "2"}]},
		{"name": "2", "meta-type": "object", "members": [{"name": "policy"}, {"name": "cbitpos"},
			{"name": "reduced-phys-bits"}, {"name": "kernel-hashes"}]}]`
	for command, answer := range map[string]string{
		"query-qmp-schema": schema, "qom-list-properties": `[]`,
		"query-cpu-definitions": `[{"name": "EPYC-v4"}]`,
		"query-machines":        `[{"name": "pc-q35-9.9", "alias": "q35", "cpu-max": 288}]`,
		"query-qmp-version":     `{}`,
	} {
		q.On(command, func(json.RawMessage) (any, error) { return json.RawMessage(answer), nil })
	}
	q.On("quit", func(json.RawMessage) (any, error) {
		time.AfterFunc(5*time.Millisecond, func() { os.Exit(0) })
		return struct{}{}, nil
	})
}

// testMeasurement is what the fake platform shows.
func testMeasurement() []byte { return bytes.Repeat([]byte{0xa5}, sev.MeasurementSize) }

// playPlatform answers for a secure processor.
func playPlatform(q *qmptest.QEMU, o *plan.Options) {
	c, _ := o.Protection()
	policy, _ := strconv.ParseUint(c.Props["policy"], 10, 64)
	info := map[string]any{
		"enabled": true, "api-major": 1, "api-minor": 55, "build-id": 7, "state": "launch-secret", "sev-type": "sev",
		"policy": policy, "handle": 1,
	}
	if c.Kind == "sev-snp-guest" {
		info["sev-type"], info["snp-policy"], info["policy"] = "sev-snp", policy, 0
	}
	q.On("query-sev", func(json.RawMessage) (any, error) { return info, nil })
	q.On("query-sev-launch-measure", func(json.RawMessage) (any, error) {
		return map[string][]byte{"data": testMeasurement()}, nil
	})
	q.On("sev-inject-launch-secret", func(args json.RawMessage) (any, error) {
		var got struct {
			Secret []byte `json:"secret"`
		}
		if json.Unmarshal(args, &got) != nil || !bytes.Equal(got.Secret, testPacket().Secret) {
			return nil, errors.New("SEV: failed to inject secret ret=-5 fw_error=11 'Bad measurement'")
		}
		return struct{}{}, nil
	})
}

func testPacket() *exchange.Packet {
	return &exchange.Packet{
		Schema: exchange.PacketSchema,
		Header: make([]byte, 52),
		Secret: bytes.Repeat([]byte("sixteen bytes of"), 2),
	}
}

// playOwner is an owner's command.
func playOwner(how string) int {
	b, err := io.ReadAll(os.Stdin)
	if err != nil {
		return 1
	}
	m, err := exchange.ParseMeasurement(b)
	if err != nil || !bytes.Equal(m.Measurement, testMeasurement()) {
		fmt.Fprintln(os.Stderr, "not the measurement")
		return 1
	}
	switch how {
	case "refuses":
		return 4
	case "fails":
		return 1
	case "hangs":
		time.Sleep(time.Hour)
	case "talks":
		for {
			fmt.Println(strings.Repeat("x", 4096))
		}
	case "garbage":
		fmt.Println("no packet")
		return 0
	}
	fmt.Fprintln(os.Stderr, "the owner agrees")
	_ = json.NewEncoder(os.Stdout).Encode(testPacket())
	return 0
}

// playHelper is a helper: it lives as long as QEMU's end of its socket pair, or longer.
func playHelper(args []string) int {
	how, name := args[0], args[1]
	fd, _ := strconv.Atoi(args[2])
	_ = os.WriteFile(name, []byte(strconv.Itoa(os.Getpid())), 0o600)
	if how == "dies" {
		fmt.Fprintln(os.Stderr, "helper: no room at the inn")
		return 1
	}
	c, err := net.FileConn(os.NewFile(uintptr(fd), "qemu"))
	if err != nil {
		return 1
	}
	_, _ = io.Copy(io.Discard, c) // until QEMU has ended
	if how == "stubborn" {
		signal.Ignore(unix.SIGTERM)
		time.Sleep(time.Hour)
	}
	return 0
}

// machineTest is a host on which the fake QEMU runs.
type machineTest struct {
	*testing.T
	dir  string
	root rundir.Root
}

func newMachineTest(t *testing.T) *machineTest {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string][]byte{
		"fw": ovmftest.AmdSev(ovmftest.ResetVector()),
		"k":  ovmftest.Kernel(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(roleVar, "qemu")
	t.Setenv(faultsVar, "{}")
	return &machineTest{t, dir, rundir.Root{Run: filepath.Join(dir, "run"), State: filepath.Join(dir, "state")}}
}

// faults sets what goes wrong in the QEMUs that are started from now on.
func (h *machineTest) faults(pairs ...string) {
	h.Helper()
	faults := map[string]string{}
	for i := 0; i < len(pairs); i += 2 {
		faults[pairs[i]] = pairs[i+1]
	}
	b, err := json.Marshal(faults)
	if err != nil {
		h.Fatal(err)
	}
	h.Setenv(faultsVar, string(b))
}

// Specs for the fake QEMU. The owner's files are not read by it.
const (
	plainGuest = "name = \"vm\"\n"
	snpGuest   = `
name = "vm"
memory = "64MiB"
cpu = "EPYC-Milan-v1"
[firmware]
image = "fw"
[confidential]
technology = "sev-snp"
[latch]
until = "nothing"
`
)

var sevGuest = testhost.Specs()["sev"]

// owner is a [latch] whose owner answers in some way.
func owner(how string) string {
	self, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return fmt.Sprintf("[latch]\nowner = [%q, \"owner\", %q]\ntimeout = \"2s\"\n", self, how)
}

// plan works out the start of a spec on the fake QEMU.
func (h *machineTest) plan(text string, more ...func(*plan.Facts)) *Plan {
	h.Helper()
	cert, session := strings.Repeat("A", sev.CertificateSize/3*4+3)+"=", strings.Repeat("A", sev.SessionSize/3*4+3)+"="
	for name, content := range map[string]string{"cert": cert, "session": session} {
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(content), 0o600); err != nil {
			h.Fatal(err)
		}
	}
	s, err := ParseSpec([]byte(text), filepath.Join(h.dir, "vm.toml"), h.dir)
	if err != nil {
		h.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	emulated := func(*plan.Facts) {}
	if s.Asked()[0] != "none" {
		emulated = testhost.Emulated(self) // so that nothing has to be pinned
	}
	p, err := NewPlan(s, testhost.Facts(append(more, emulated, func(f *plan.Facts) {
		f.QEMU, f.SlotDir = self, filepath.Join(h.root.Run, ".slots")
	})...), h.root)
	if err != nil {
		h.Fatal(err)
	}
	if p.Emulated { // the fake emulator is the QEMU itself
		p.Argv, p.Facts.Emulator = p.Argv[1:], []string{}
	}
	return p
}

// start starts a spec, which must succeed.
func (h *machineTest) start(text string, opt StartOptions) *Machine {
	h.Helper()
	m, err := h.plan(text).Start(h.Context(), opt)
	if err != nil {
		h.Fatal(err)
	}
	h.end(m)
	return m
}

// end ends a machine with the test.
func (h *machineTest) end(m *Machine) {
	h.Cleanup(func() {
		ctx := context.WithoutCancel(h.Context()) // it is cancelled before cleanups
		m.Close()
		_, _, _ = h.root.Sweep(ctx)
		_ = KillByName(ctx, h.root, "vm")
		if m.own != nil {
			<-m.own.done
		}
	})
}

// nothingLeft fails unless there is no trace of the VM.
func (h *machineTest) nothingLeft(when string) {
	h.Helper()
	for _, dir := range []string{h.root.Run, h.root.State} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			h.Fatal(err)
		}
		names := []string{}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		names = slices.DeleteFunc(names, func(n string) bool { return n == ".lock" || n == ".slots" })
		if len(names) > 0 {
			h.Errorf("%s: %s has %v, want nothing of the VM", when, dir, names)
		}
	}
}
