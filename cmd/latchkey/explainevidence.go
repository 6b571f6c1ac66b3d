package main

import (
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/explain"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/launch"
	"github.com/vmlatch/vmlatch/firmware/tdx/rtmr"
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
		boot.Others = j.otherInitrds()
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

// otherConfigs are the initrds of hosts that left out a part of the configuration of the first
// boot; nil if they cannot be read.
func (j *judgement) otherConfigs() []explain.NamedHash {
	others, err := j.policy.OtherInitrds()
	if err != nil {
		return nil
	}
	list, _ := hashConfigs(others)
	return list
}

// otherInitrds are the same for a trust domain.
func (j *judgement) otherInitrds() (list []rtmr.Other) {
	others, _ := j.policy.OtherInitrds()
	for _, o := range others {
		if sum, err := rtmr.HashInitrd(o.Initrd); err == nil {
			say := "the configuration of the first boot differs: " + o.Say
			list = append(list, rtmr.Other{Say: say, Digest: sum})
		}
	}
	return list
}
