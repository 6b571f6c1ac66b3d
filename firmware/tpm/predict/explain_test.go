package predict

import (
	"slices"
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/authenticode/petest"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/eventlog/eventlogtest"
	"github.com/vmlatch/vmlatch/firmware/internal/vectors"
)

// logOf is the log of a boot that went as predicted.
func logOf(p *Prediction) *eventlog.Log {
	l := &eventlog.Log{Banks: p.Banks}
	for _, r := range p.PCRs {
		for _, e := range r.Events {
			if r.Index != 10 {
				l.Events = append(l.Events, eventlog.Event{Index: uint32(e.PCR), Type: e.Type, Digests: e.Digests})
			}
		}
	}
	return l
}

// TestExplain: each change of an input is named, by the register that it changed.
func TestExplain(t *testing.T) {
	kernel := vectors.PCRVectors(t).Small.Authenticode[2].Image
	sums := func(fill byte) map[eventlog.Bank][]byte {
		return map[eventlog.Bank][]byte{eventlog.SHA256: slices.Repeat([]byte{fill}, 32)}
	}
	inputs := func() *Inputs {
		return &Inputs{
			Firmware: firmware(), Kernel: kernel, Initrd: &Initrd{1234567, sums(1)}, Cmdline: "console=ttyS0  quiet",
			QEMU: 11, Memory: 1 << 30,
		}
	}
	yours := inputs()
	p, err := Predict(yours)
	if err != nil {
		t.Fatal(err)
	}
	for what, x := range map[string]struct {
		boot func(in *Inputs)
		log  func(l *eventlog.Log)
		pcr  int
		want string
	}{
		"nothing": {pcr: -1},
		"another line": {
			boot: func(in *Inputs) { in.Cmdline = "init=/bin/sh" },
			pcr:  9, want: "the command line differs",
		},
		"a word less": {
			boot: func(in *Inputs) { in.Cmdline = "console=ttyS0" },
			pcr:  9, want: `it lacks "quiet"`,
		},
		"a line's end": {
			boot: func(in *Inputs) { in.Cmdline += "\n" },
			pcr:  9, want: "a line's end",
		},
		"single spaces": {
			boot: func(in *Inputs) { in.Cmdline = "console=ttyS0 quiet" },
			pcr:  9, want: "single spaces",
		},
		"an empty line": {
			boot: func(in *Inputs) { in.Cmdline = "" },
			pcr:  9, want: "it is empty",
		},
		"no initrd": {
			boot: func(in *Inputs) { in.Initrd = nil },
			pcr:  9, want: "has an initrd|measurement of the initrd is missing",
		},
		"another initrd": {
			boot: func(in *Inputs) { in.Initrd = &Initrd{1234567, sums(2)} },
			pcr:  9, want: "the initrd differs",
		},
		"old firmware": {
			boot: func(in *Inputs) { in.Firmware.options = styleSuffix },
			pcr:  9, want: "of another age",
		},
		"an old QEMU": {
			boot: func(in *Inputs) { in.QEMU = 7 },
			pcr:  4, want: "older than version 10",
		},
		"and other memory": {
			boot: func(in *Inputs) { in.QEMU, in.Memory = 7, 512<<20 },
			pcr:  4, want: "512 MiB of memory",
		},
		"and much memory": {
			boot: func(in *Inputs) { in.QEMU, in.Memory = 7, 64<<30 },
			pcr:  4, want: "or of 2.75 GiB or more",
		},
		"another kernel": {
			boot: func(in *Inputs) { in.Kernel = petest.Code("x") },
			pcr:  4, want: "the kernel differs",
		},
		"Secure Boot": {
			boot: func(in *Inputs) { in.Firmware.SecureBoot = true },
			pcr:  7, want: "switched otherwise",
		},
		"other modules": {
			boot: func(in *Inputs) { in.Firmware.Volumes[0] = []byte("x") },
			pcr:  0, want: "first modules",
		},
		"other drivers": {
			boot: func(in *Inputs) { in.Firmware.Volumes[1] = []byte("x") },
			pcr:  0, want: "another build",
		},
		"another version": {
			boot: func(in *Inputs) { in.Firmware.Version = "2" },
			pcr:  0, want: "the firmware version differs",
		},
		"a measurement less": {
			log: func(l *eventlog.Log) {
				l.Events = slices.DeleteFunc(l.Events, func(e eventlog.Event) bool {
					return e.Index == 4 && e.Type == eventlog.EFIAction
				})
			},
			pcr: 4, want: "start of a boot option is missing",
		},
		"an option ROM": {
			log: func(l *eventlog.Log) {
				e := eventlog.Event{Index: 2, Type: eventlog.BootServicesDriver, Digests: sums(7)}
				l.Events = slices.Insert(l.Events, 0, e)
			},
			pcr: 2, want: "one measurement more: EV_EFI_BOOT_SERVICES_DRIVER",
		},
		"a failed boot option": {
			log: func(l *eventlog.Log) {
				data := []byte("Returning from EFI Application from Boot Option")
				e := eventlog.Event{Index: 4, Type: eventlog.EFIAction, Data: data}
				e.Digests = map[eventlog.Bank][]byte{eventlog.SHA256: eventlog.SHA256.Sum(data)}
				l.Events = append(l.Events, e)
			},
			pcr: 4, want: "one measurement more: EV_EFI_ACTION \"Returning from",
		},
		"a second try": {
			log: func(l *eventlog.Log) {
				i := slices.IndexFunc(l.Events, func(e eventlog.Event) bool {
					return string(e.Digests[eventlog.SHA256]) == string(eventlog.SHA256.Sum([]byte(exitDone)))
				})
				var more []eventlog.Event
				for _, text := range []string{exitFailed, exitBegins} {
					more = append(more, eventlogtest.Hashed(5, eventlog.EFIAction, text, eventlog.SHA256))
				}
				l.Events = slices.Insert(l.Events, i, more...)
			},
			pcr: -1,
		},
		"another order": {
			log: func(l *eventlog.Log) {
				i := slices.IndexFunc(l.Events, func(e eventlog.Event) bool { return e.Index == 4 })
				l.Events[i], l.Events[i+1] = l.Events[i+1], l.Events[i]
			},
			pcr: 4, want: "in another order",
		},
	} {
		boot := inputs()
		if x.boot != nil {
			x.boot(boot)
		}
		really, err := Predict(boot)
		if err != nil {
			t.Fatal(err)
		}
		log := logOf(really)
		if x.log != nil {
			x.log(log)
		}
		findings, err := Explain(yours, p, log, eventlog.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range findings {
			switch {
			case f.PCR == x.pcr && f.Verdict != Differs:
				t.Errorf("%s: PCR %d %s", what, f.PCR, f.Verdict)
			case f.PCR == x.pcr:
				for _, want := range strings.Split(x.want, "|") {
					if got := strings.Join(f.Why, "; "); !strings.Contains(got, want) {
						t.Errorf("%s: PCR %d: %q, want %q", what, f.PCR, got, want)
					}
				}
			case f.Verdict == Differs:
				t.Errorf("%s: PCR %d differs too: %q", what, f.PCR, f.Why)
			}
		}
	}
	if _, err := Explain(yours, p, &eventlog.Log{}, eventlog.SHA256); err == nil {
		t.Error("a log without the bank is explained")
	}
}
