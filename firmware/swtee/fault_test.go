package swtee

import (
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmlatch/vmlatch/firmware/sev"
)

func TestParseFault(t *testing.T) {
	for text, want := range map[string]Fault{
		"LAUNCH_MEASURE=BAD_MEASUREMENT": {Command: CmdLaunchMeasure, From: 1, Err: sev.StatusBadMeasurement},
		"LAUNCH_UPDATE_DATA:2=23":        {Command: CmdLaunchUpdateData, From: 2, To: 2, Err: sev.StatusResourceLimit},
		"LAUNCH_UPDATE_DATA:2+=0x17":     {Command: CmdLaunchUpdateData, From: 2, Err: sev.StatusResourceLimit},
		"SNP_LAUNCH_UPDATE:3-5=EBUSY":    {Command: CmdSNPLaunchUpdate, From: 3, To: 5, Err: unix.EBUSY},
		"LAUNCH_START=reset":             {Command: CmdLaunchStart, From: 1, Reset: true},
		"TDX_INIT_VM=delay:1.5s":         {Command: CmdTDXInitVM, From: 1, Delay: 1500 * time.Millisecond},
	} {
		got, err := ParseFault(text)
		if err != nil || got.String() != text {
			t.Errorf("%s: %v", text, err)
		}
		if got.text = ""; got != want {
			t.Errorf("%s: %+v, want %+v", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"LAUNCH_START":                "write COMMAND",
		"X=reset":                     `unknown command "X": must be PLATFORM_STATUS`,
		"LAUNCH_STRAT=reset":          `did you mean "LAUNCH_START"?`,
		"LAUNCH_START=":               "unknown fault",
		"LAUNCH_START=SUCCESS":        "unknown fault",
		"LAUNCH_START=BAD_MEASURMENT": `did you mean "BAD_MEASUREMENT"?`,
		"LAUNCH_START=0":              "unknown fault",
		"LAUNCH_START:0=reset":        "counted from 1",
		"LAUNCH_START:3-2=reset":      "counted from 1",
		"LAUNCH_START:x=reset":        "counted from 1",
		"LAUNCH_START=delay:x":        "with its unit",
		"LAUNCH_START=delay:5":        "with its unit",
		"LAUNCH_START=delay:-1s":      "with its unit",
	} {
		if _, err := ParseFault(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func FuzzParseFault(f *testing.F) {
	f.Add("LAUNCH_UPDATE_DATA:2-7=delay:3ms")
	f.Fuzz(func(t *testing.T, s string) {
		if got, err := ParseFault(s); err == nil && (got.From < 1 || got.Err == nil && !got.Reset && got.Delay < 0) {
			t.Errorf("%q: %+v", s, got)
		}
	})
}

// TestFaultsByCount: a fault hits the calls that it names, and the report shows it.
func TestFaultsByCount(t *testing.T) {
	second, err := ParseFault("LAUNCH_UPDATE_DATA:2=RESOURCE_LIMIT")
	if err != nil {
		t.Fatal(err)
	}
	reset, err := ParseFault("LAUNCH_MEASURE=reset")
	if err != nil {
		t.Fatal(err)
	}
	fw := NewFirmware(platform(t), second, reset)
	g := fw.NewGuest()
	if err := errors.Join(
		g.Init(CmdInit, false, 0),
		g.LaunchStart(sev.PolicyNoDebug, nil, nil),
		g.LaunchUpdateData(0, make([]byte, 16)),
	); err != nil {
		t.Fatal(err)
	}
	if s, err := fw.Status(); err != nil || s.State != PlatformWorking {
		t.Errorf("platform %+v, %v", s, err)
	}
	err = g.LaunchUpdateData(0, make([]byte, 16))
	if status(err) != sev.StatusResourceLimit || Errno(err) != unix.EIO {
		t.Errorf("second: %v, want RESOURCE_LIMIT as EIO", err)
	}
	if err := g.LaunchUpdateData(0, make([]byte, 16)); err != nil {
		t.Errorf("third: %v", err)
	}
	if _, err := g.LaunchMeasure(); status(err) != sev.StatusInvalidGuest {
		t.Errorf("after a reset: %v", err)
	}
	if s, err := fw.Status(); err != nil || s.State != PlatformUninit {
		t.Errorf("platform after a reset: %+v, %v", s, err)
	}
	if err := fw.NewGuest().Init(CmdInit, false, 0); err != nil {
		t.Errorf("a new guest after the reset: %v", err)
	}
	fw.WithReport(func(r *Report) {
		if len(r.Commands) != 9 || r.Commands[4].Status != "RESOURCE_LIMIT" || r.Commands[4].Count != 2 {
			t.Errorf("%d commands: %+v", len(r.Commands), r.Commands)
		}
	})
}

// TestSNPAndTDOutOfOrder: commands are refused in the wrong order or with bad arguments.
func TestSNPAndTDOutOfOrder(t *testing.T) {
	fw := NewFirmware(platform(t))
	g, page := fw.NewSNPGuest(), make([]byte, sev.PageSize)
	for name, c := range map[string]struct {
		err  error
		want error
	}{
		"update first":   {g.LaunchUpdate(sev.PageNormal, 0, page), sev.StatusInvalidGuestState},
		"finish first":   {g.LaunchFinish(SNPFinish{}), sev.StatusInvalidGuestState},
		"policy bit 17":  {g.LaunchStart(0), unix.EINVAL},
		"policy bit 40":  {g.LaunchStart(1<<40 | 1<<17), unix.EINVAL},
		"newer firmware": {g.LaunchStart(1<<17 | 0xff00), sev.StatusPolicyFailure},
		"start":          {g.LaunchStart(0x30000), nil},
		"start again":    {g.LaunchStart(0x30000), sev.StatusInvalidGuestState},
		"vmsa page":      {g.LaunchUpdate(sev.PageVMSA, 0, page), unix.EINVAL},
		"half a page":    {g.LaunchUpdate(sev.PageNormal, 0, page[:100]), unix.EINVAL},
		"odd address":    {g.LaunchUpdate(sev.PageNormal, 8, page), unix.EINVAL},
		"short id block": {g.LaunchFinish(SNPFinish{IDBlock: page[:5]}), sev.StatusInvalidLength},
		"empty id auth":  {g.LaunchFinish(SNPFinish{IDBlock: page[:96], IDAuth: page}), sev.StatusInvalidParam},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", name, c.err, c.want)
		}
	}
	td := fw.NewTD()
	for _, err := range []error{
		td.InitVCPU(0),
		td.GetCPUID(),
		td.Finalize(),
		td.InitMemRegion(0, page, true),
		td.InitVM(TDParams{Attributes: 2}),
	} {
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("a TD before its initialisation: %v, want EINVAL", err)
		}
	}
	err := errors.Join(td.InitVM(TDParams{XFAM: tdXFAMFixed}), td.InitMemRegion(0, page, true), td.Finalize())
	if err != nil {
		t.Error(err)
	}
	if err := td.Finalize(); !errors.Is(err, unix.EINVAL) {
		t.Errorf("finalized twice: %v", err)
	}
}
