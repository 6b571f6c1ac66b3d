package predict

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/vmlatch/vmlatch/firmware/authenticode"
	"github.com/vmlatch/vmlatch/firmware/bzimage"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
)

// Verdict is what became of a register.
type Verdict string

// Verdicts.
const (
	Matches Verdict = "matches"
	Differs Verdict = "differs"
	Skipped Verdict = "not-predicted"
)

// Finding is about one register of a boot.
type Finding struct {
	PCR     int
	Verdict Verdict
	Value   []byte   // that the log leads to
	Why     []string // which input changed; sentences
}

// Explain holds the log of a boot against a prediction, register by register. The log must have
// been replayed against registers that are known to be genuine: it proves nothing by itself.
func Explain(in *Inputs, p *Prediction, log *eventlog.Log, bank eventlog.Bank) ([]Finding, error) {
	got, err := log.Replay(bank)
	if err != nil {
		return nil, err
	}
	x := &explainer{in: in, bank: bank}
	var out []Finding
	for i := range p.PCRs {
		r := &p.PCRs[i]
		f := Finding{PCR: i, Value: got[i], Verdict: Matches}
		var events []*eventlog.Event
		for j := range log.Events {
			if log.Events[j].Index == uint32(i) {
				events = append(events, &log.Events[j])
			}
		}
		switch {
		case i == imaPCR && len(events) == 0: // IMA's own log has them
			f.Verdict = Skipped
		case r.Values == nil:
			f.Verdict = Skipped
		case i == 5 && !bytes.Equal(r.Values[bank], got[i]) && x.secondTry(r.Events, events):
			f.Why = []string{"the firmware's services ended at a second try, as they do by chance"}
		case !bytes.Equal(r.Values[bank], got[i]):
			f.Verdict, f.Why = Differs, x.differences(r.Events, events)
		}
		out = append(out, f)
	}
	return out, nil
}

type explainer struct {
	in   *Inputs
	bank eventlog.Bank
}

// differences compares the measurements of a register in their order.
func (x *explainer) differences(want []Event, got []*eventlog.Event) (why []string) {
	same := func(i, j int) bool { return bytes.Equal(want[i].Digests[x.bank], got[j].Digests[x.bank]) }
	i, j := 0, 0
	for i < len(want) && j < len(got) {
		switch {
		case same(i, j):
			i++
			j++
		case j+1 < len(got) && same(i, j+1) || want[i].Type != got[j].Type && x.later(want[i], got[j:]):
			why = append(why, "one measurement more: "+x.named(got[j]))
			j++
		case i+1 < len(want) && same(i+1, j):
			why = append(why, fmt.Sprintf("the measurement of the %s is missing", want[i].What))
			i++
		default:
			why = append(why, x.changed(&want[i], got[j]))
			i++
			j++
		}
	}
	for ; i < len(want); i++ {
		why = append(why, fmt.Sprintf("the measurement of the %s is missing", want[i].What))
	}
	for ; j < len(got); j++ {
		why = append(why, "one measurement more: "+x.named(got[j]))
	}
	if x.reordered(want, got) {
		return []string{"the same was measured, in another order"}
	}
	return why
}

// secondTry reports whether the measurements are those that were expected, but for tries to end the
// firmware's services that failed: the kernel repeats them.
func (x *explainer) secondTry(want []Event, got []*eventlog.Event) bool {
	failed, again := x.bank.Sum([]byte(exitFailed)), x.bank.Sum([]byte(exitBegins))
	var rest []*eventlog.Event
	for i := 0; i < len(got); i++ {
		if i+1 < len(got) && bytes.Equal(got[i].Digests[x.bank], failed) &&
			bytes.Equal(got[i+1].Digests[x.bank], again) {
			i++
			continue
		}
		rest = append(rest, got[i])
	}
	if len(rest) == len(got) || len(rest) != len(want) {
		return false
	}
	for i := range rest {
		if !bytes.Equal(rest[i].Digests[x.bank], want[i].Digests[x.bank]) {
			return false
		}
	}
	return true
}

// later reports whether a measurement of the type comes among the rest.
func (x *explainer) later(want Event, rest []*eventlog.Event) bool {
	return slices.ContainsFunc(rest, func(e *eventlog.Event) bool { return e.Type == want.Type })
}

func (x *explainer) reordered(want []Event, got []*eventlog.Event) bool {
	if len(want) != len(got) {
		return false
	}
	count := map[string]int{}
	for i := range want {
		count[string(want[i].Digests[x.bank])]++
		count[string(got[i].Digests[x.bank])]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// named says what a measurement is of, as far as the log's data are what was measured.
func (x *explainer) named(e *eventlog.Event) string {
	if text := e.Says(); text != "" && e.Hashes(x.bank) {
		return fmt.Sprintf("%v %q", e.Type, text)
	}
	return e.Type.String()
}

// changed explains a measurement that is not that of the owner's input.
func (x *explainer) changed(want *Event, got *eventlog.Event) string {
	sum := got.Digests[x.bank]
	switch want.What {
	case "command line":
		return x.cmdline(sum)
	case "kernel":
		return x.kernel(sum)
	case "first modules (PEI)":
		return "the firmware's first modules (PEI) differ: it is another build, or one that writes to its own data" +
			" before it measures them"
	case "drivers (DXE)":
		return "the firmware's drivers (DXE) are those of another build"
	case "SecureBoot":
		return "Secure Boot is switched otherwise" + x.variable(got)
	case "PK", "KEK", "db", "dbx":
		return fmt.Sprintf("the keys of Secure Boot differ: %s is another%s", want.What, x.variable(got))
	}
	return fmt.Sprintf("the %s differs", want.What)
}

// variable tells a short value of a variable that was measured.
func (x *explainer) variable(e *eventlog.Event) string {
	const header = 32
	if !e.Hashes(x.bank) || len(e.Data) < header {
		return ""
	}
	name := int(e.Data[16]) | int(e.Data[17])<<8
	if len(e.Data) < header+2*name {
		return ""
	}
	switch data := e.Data[header+2*name:]; {
	case len(data) == 0:
		return " (it is not there)"
	case len(data) == 1:
		return fmt.Sprintf(" (it is %d)", data[0])
	default:
		return fmt.Sprintf(" (it has %d bytes)", len(data))
	}
}

// cmdline looks for the change of the command line that leads to a digest.
func (x *explainer) cmdline(sum []byte) string {
	line, initrd := x.in.Cmdline, x.in.Initrd != nil
	suffix := x.in.Firmware != nil && x.in.Firmware.options == styleSuffix
	for _, c := range []struct {
		line           string
		initrd, suffix bool
		what           string
	}{
		{line, initrd, !suffix, "it is yours, but initrd= stands at its other end: the firmware is of another age"},
		{line, !initrd, suffix, "it is yours, but only one of the two boots has an initrd"},
		{line + "\n", initrd, suffix, "it is yours, with a line's end behind it"},
		{line + " ", initrd, suffix, "it is yours, with a space behind it"},
		{strings.TrimSpace(line), initrd, suffix, "it is yours, without the spaces around it"},
		{strings.Join(strings.Fields(line), " "), initrd, suffix, "it is yours, with single spaces between the words"},
		{strings.Trim(line, `"'`), initrd, suffix, "it is yours, without the quotes around it"},
		{"", initrd, suffix, "it is empty"},
	} {
		if bytes.Equal(x.bank.Sum(bzimage.LoadOptions(c.line, c.initrd, c.suffix)), sum) {
			return "the command line differs: " + c.what
		}
	}
	words := strings.Fields(line)
	for i, w := range words {
		rest := append(append([]string{}, words[:i]...), words[i+1:]...)
		if bytes.Equal(x.bank.Sum(bzimage.LoadOptions(strings.Join(rest, " "), initrd, suffix)), sum) {
			return fmt.Sprintf("the command line differs: it lacks %q", w)
		}
	}
	return "the command line differs"
}

// kernel looks for the change of the kernel's header that leads to a digest.
func (x *explainer) kernel(sum []byte) string {
	is := func(image []byte) bool {
		got, err := authenticode.Sum(image, x.bank.Hash().New())
		return err == nil && bytes.Equal(got, sum)
	}
	if is(x.in.Kernel) {
		return "the kernel is yours, as the file is: the QEMU is of version 10 or newer"
	}
	var size int64
	if x.in.Initrd != nil {
		size = x.in.Initrd.Size
	}
	if !bzimage.HasHeader(x.in.Kernel) {
		return "the kernel differs"
	}
	for mib := uint64(128); mib < 2816; mib += 128 { // from there on it changes no more
		b, err := bzimage.Patched(x.in.Kernel, mib<<20, size, x.in.Cmdline)
		if err != nil || !is(b) {
			continue
		}
		return fmt.Sprintf("the kernel is yours, with the header that QEMU fills in for a guest of %s",
			memoryWords(mib, x.in.Memory>>20, size))
	}
	return "the kernel differs, or QEMU has filled in its header for another initrd or memory"
}

// memoryWords says which memory fits; beyond 2.75 GiB all do.
func memoryWords(mib, yours uint64, initrd int64) string {
	switch {
	case initrd == 0:
		return "any memory: the QEMU is older than version 10"
	case mib == 2048 && yours != mib: // QEMU puts the same below 4 GiB
		return "2 GiB of memory, or of 2.75 GiB or more"
	case yours == mib:
		return fmt.Sprintf("%d MiB: the QEMU is older than version 10", mib)
	}
	return fmt.Sprintf("%d MiB of memory", mib)
}
