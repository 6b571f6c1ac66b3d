package main

import (
	"strings"
	"testing"
)

func TestChoose(t *testing.T) {
	none := hostKVM{why: "/dev/kvm: no such file"}
	weak := hostKVM{opens: true, why: "neither vmx nor svm"}
	good := hostKVM{opens: true, runs: true}
	sev, es := "qemu -object sev-guest,id=a", "qemu -object sev-guest,id=a,policy=7"
	snp, tdx, plain := "qemu -object sev-snp-guest,id=a", "qemu -object tdx-guest,id=a", "qemu -m 64"
	for _, c := range []struct {
		accel string
		fake  bool
		line  string
		kvm   hostKVM
		want  choice // why: a part of it
		err   string
	}{
		{accelAuto, false, sev, good, choice{accelUnder, false, "KVM can run the guest"}, ""},
		{accelAuto, false, plain, none, choice{accelTCG, false, "no such file"}, ""},
		{accelAuto, false, sev, weak, choice{accelTwin, false, "neither vmx nor svm"}, ""},
		{accelAuto, false, es, weak, choice{accelTwin, false, "neither vmx nor svm"}, ""},
		{accelAuto, false, snp, none, choice{accelTwin, false, "no such file"}, ""},
		{accelAuto, false, tdx, none, choice{accelUnder, true, "TDX without -kernel does not boot"}, ""},
		{accelAuto, false, tdx + " -kernel k", none, choice{accelTwin, false, "no such file"}, ""},
		{
			accelAuto, false, snp + " -object igvm-cfg,id=i,file=f", none,
			choice{accelUnder, true, "firmware in an IGVM file does not"},
			"",
		},
		{accelTwin, false, tdx, good, choice{accelTwin, false, "as asked"}, ""},
		{accelTwin, true, tdx, good, choice{}, "exclude"},
		{accelAuto, false, tdx, good, choice{accelUnder, false, "KVM can run"}, ""},
		{accelAuto, true, sev, good, choice{accelUnder, true, "as asked"}, ""},
		{accelUnder, false, sev, weak, choice{accelUnder, false, "as asked"}, ""},
		{accelUnder, false, sev, none, choice{}, "no such file"},
		{accelUnder, true, sev, none, choice{accelUnder, true, "as asked"}, ""},
		{accelTCG, false, sev, good, choice{accelTCG, false, "as asked"}, ""},
		{accelTCG, true, sev, good, choice{}, "exclude"},
		{"kvm", false, sev, good, choice{}, `unknown accelerator "kvm": must be auto, under, twin or tcg`},
		{"atuo", false, sev, good, choice{}, `did you mean "auto"?`},
	} {
		got, err := choose(c.accel, c.fake, strings.Fields(c.line), c.kvm)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v: %v, want %q", c, err, c.err)
			}
			continue
		}
		same := got.accel == c.want.accel && got.fakeKVM == c.want.fakeKVM
		if err != nil || !same || !strings.Contains(got.why, c.want.why) {
			t.Errorf("%s %s: %+v, %v, want %+v", c.accel, c.line, got, err, c.want)
		}
	}
}
