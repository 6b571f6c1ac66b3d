package main

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/eventlog"
	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/firmware/tpm/predict"
)

// pcrReport is what "pcrs" prints.
type pcrReport struct {
	Schema string     `json:"schema"`
	PCRs   []pcrRow   `json:"pcrs"`
	Events []pcrEvent `json:"events,omitempty"`

	banks  []eventlog.Bank
	events []predict.PCR // as predicted
}

type pcrRow struct {
	PCR       int               `json:"pcr"`
	Certainty string            `json:"certainty,omitempty"`
	Why       string            `json:"why,omitempty"`     // the conditions, or the cause
	Values    map[string]string `json:"values,omitempty"`  // expected, by bank
	Log       string            `json:"log,omitempty"`     // what the log leads to
	Verdict   string            `json:"verdict,omitempty"` // of the log
	Changed   []string          `json:"changed,omitempty"` // which input
}

type pcrEvent struct {
	PCR     int               `json:"pcr"`
	Type    string            `json:"type"`
	What    string            `json:"what,omitempty"`
	Digests map[string]string `json:"digests"`
}

// predict works out the registers, and compares a log with them.
func (r *pcrReport) predict(in *predict.Inputs, log *eventlog.Log) error {
	p, err := predict.Predict(in)
	if err != nil {
		return err
	}
	r.events = p.PCRs[:]
	for _, x := range p.PCRs {
		row := pcrRow{PCR: x.Index, Certainty: string(x.Certainty), Why: x.Why, Values: hexes(x.Values)}
		r.PCRs = append(r.PCRs, row)
	}
	if log == nil {
		return nil
	}
	findings, err := predict.Explain(in, p, log, r.banks[0])
	if err != nil {
		return err
	}
	for i, f := range findings {
		r.PCRs[i].Log, r.PCRs[i].Verdict, r.PCRs[i].Changed = hex.EncodeToString(f.Value), string(f.Verdict), f.Why
	}
	return nil
}

func hexes(m map[eventlog.Bank][]byte) map[string]string {
	out := map[string]string{}
	for b, v := range m {
		out[b.String()] = hex.EncodeToString(v)
	}
	return out
}

// replay shows what a log leads to.
func (r *pcrReport) replay(log *eventlog.Log) error {
	values, err := log.Replay(r.banks[0])
	if err != nil {
		return err
	}
	for i := range predict.Registers {
		r.PCRs = append(r.PCRs, pcrRow{PCR: i, Log: hex.EncodeToString(values[i])})
	}
	return nil
}

// maxExpected bounds a table that was kept, in bytes.
const maxExpected = 1 << 20

// readExpected reads a table that was kept, as this command prints them.
func readExpected(name string, bank eventlog.Bank) (map[int]predict.Kept, error) {
	b, err := regular.Read(name, maxExpected)
	if err != nil {
		return nil, err
	}
	return predict.ParseTable(b, bank)
}

// expect compares a log with a table that was kept.
func (r *pcrReport) expect(name string, log *eventlog.Log) error {
	table, err := readExpected(name, r.banks[0])
	if err != nil {
		return cli.Usagef("--expect %s: %w", name, err)
	}
	if err := r.replay(log); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	for pcr, x := range table {
		row := &r.PCRs[pcr]
		row.Certainty, row.Verdict = x.Certainty, string(predict.Skipped)
		if x.Value == nil {
			continue
		}
		value := hex.EncodeToString(x.Value)
		row.Values, row.Verdict = map[string]string{r.banks[0].String(): value}, string(predict.Matches)
		if value != row.Log {
			row.Verdict = string(predict.Differs)
		}
	}
	if ima := &r.PCRs[10]; ima.Verdict == string(predict.Differs) && !hasEvents(log, 10) { // IMA's own log has them
		ima.Verdict = string(predict.Skipped)
	}
	return nil
}

func hasEvents(log *eventlog.Log, pcr uint32) bool {
	return slices.ContainsFunc(log.Events, func(e eventlog.Event) bool { return e.Index == pcr })
}

// listEvents adds the measurements: those of a log, or those that are predicted.
func (r *pcrReport) listEvents(log *eventlog.Log) {
	if log == nil {
		for _, p := range r.events {
			for _, e := range p.Events {
				r.Events = append(r.Events, pcrEvent{e.PCR, e.Type.String(), e.What, hexes(e.Digests)})
			}
		}
		return
	}
	for i := range log.Events {
		e := &log.Events[i]
		what := e.Says()
		if what != "" && !e.Hashes(r.banks[0]) {
			what = "[" + what + "]"
		}
		digests := map[string]string{r.banks[0].String(): hex.EncodeToString(e.Digests[r.banks[0]])}
		r.Events = append(r.Events, pcrEvent{int(e.Index), e.Type.String(), what, digests})
	}
}

// show prints the report. A log that differs is an error.
func (r *pcrReport) show(asJSON bool, s *cli.IO) error {
	var differs []string
	compared := false
	for _, row := range r.PCRs {
		compared = compared || row.Verdict != ""
		if row.Verdict == string(predict.Differs) {
			differs = append(differs, strconv.Itoa(row.PCR))
		}
	}
	var err error
	if asJSON {
		err = s.JSON(r)
	} else {
		err = r.print(s, compared)
	}
	if err == nil && len(differs) > 0 {
		err = cli.Fail(cli.ExitRefused, fmt.Errorf("the log differs from what is expected in PCR %s",
			strings.Join(differs, ", ")))
	}
	return err
}

func (r *pcrReport) print(s *cli.IO, compared bool) error {
	t := s.Table(2)
	head := []string{"PCR"}
	switch {
	case compared:
		head = append(head, "VERDICT", "LOG ("+strings.ToUpper(r.banks[0].String())+")")
	case r.events == nil:
		head = append(head, strings.ToUpper(r.banks[0].String()))
	default:
		head = append(head, "CERTAINTY")
		for _, b := range r.banks {
			head = append(head, strings.ToUpper(b.String()))
		}
	}
	fmt.Fprintln(t, strings.Join(head, "\t"))
	for _, row := range r.PCRs {
		fields := []string{strconv.Itoa(row.PCR)}
		switch {
		case compared:
			fields = append(fields, row.Verdict, row.Log)
		case r.events == nil:
			fields = append(fields, row.Log)
		default:
			fields = append(fields, row.Certainty)
			for _, b := range r.banks {
				v := row.Values[b.String()]
				if v == "" {
					v = "-"
				}
				fields = append(fields, v)
			}
		}
		fmt.Fprintln(t, strings.Join(fields, "\t"))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, row := range r.PCRs {
		if row.Why != "" && (!compared || row.Verdict == string(predict.Skipped)) {
			fmt.Fprintf(s.Out, "# PCR %d %s: %s\n", row.PCR,
				map[string]string{"unknown": "is unknown", "depends-on": "holds if"}[row.Certainty],
				cli.Escape(row.Why))
		}
		for _, why := range row.Changed {
			fmt.Fprintf(s.Out, "PCR %d: %s\n", row.PCR, why)
		}
		if row.Verdict == string(predict.Differs) && row.Certainty == string(predict.DependsOn) && row.Why != "" {
			fmt.Fprintf(s.Out, "PCR %d: was predicted if %s\n", row.PCR, cli.Escape(row.Why))
		}
	}
	if len(r.Events) == 0 {
		return nil
	}
	fmt.Fprintln(s.Out)
	t = s.Table(2)
	fmt.Fprintf(t, "PCR\tTYPE\t%s\tWHAT\n", strings.ToUpper(r.banks[0].String()))
	for _, e := range r.Events {
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\n", e.PCR, e.Type, e.Digests[r.banks[0].String()], cli.Escape(e.What))
	}
	if err := t.Flush(); err != nil || r.events != nil {
		return err
	}
	_, err := fmt.Fprintln(s.Out, "# What stands in [] is the log's word: the digest is of something else.")
	return err
}
