package main

import (
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/explain"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
)

// explain says what differs where a measurement is not what the policy's files give: the
// smallest change that leads to a report's digest, or what an event log tells.
func (j *judgement) explain(e *evidence.Evidence, v *evidence.Verdict) []string {
	if v.Refusal == nil || j.policy == nil || j.policy.Guest == nil {
		return nil
	}
	switch v.Refusal.Reason {
	case refusal.Measurement:
		return j.explainReport(e)
	case refusal.RTMR:
		if v.Log() == nil {
			return nil
		}
		profile, boot, err := j.policy.Boot()
		if err != nil {
			return nil
		}
		boot.Others, _ = j.policy.OtherInitrds()
		why, _ := profile.Explain(boot, v.Log())
		return why
	}
	return nil
}

func (j *judgement) explainReport(e *evidence.Evidence) []string {
	in, err := j.policy.Inputs(launch.SNP)
	if err != nil {
		return nil
	}
	line, _ := j.policy.Cmdline()
	r := explain.Search(&explain.Query{
		Inputs: in, Firmware: filepath.Base(j.policy.Guest.Firmware),
		Kernel: &explain.Kernel{
			HasInitrd: j.policy.Guest.Initrd != "", Cmdline: line, OtherConfigs: j.otherConfigs(),
		},
		Observed: explain.Digest(e.Report.Measurement[:]),
	})
	if !r.Found {
		return nil
	}
	return []string{"what differs: " + r.Sentence()}
}

// otherConfigs are the initrds that the host may have loaded by leaving out a part of the
// configuration of the first boot; nil if they cannot be read.
func (j *judgement) otherConfigs() []explain.NamedHash {
	config, err := j.policy.Config()
	if err != nil || config == nil {
		return nil
	}
	initrd, err := j.policy.Initrd()
	if err != nil {
		return nil
	}
	list, _ := otherConfigs(config, initrd.File, nil)
	return list
}
