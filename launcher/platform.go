package launcher

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmlatch/vmlatch/firmware/sev"
	"github.com/vmlatch/vmlatch/firmware/sev/exchange"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/host"
	"github.com/vmlatch/vmlatch/launcher/plan"
	"github.com/vmlatch/vmlatch/qmp"
)

// QueryPlatform asks the secure processor through a QEMU without a machine,
// which ends with this call.
func QueryPlatform(ctx context.Context, facts *plan.Facts) (*exchange.Platform, error) {
	if kvm := facts.Host.KVM; !facts.Emulated() && kvm.Usable != host.Yes {
		return nil, &fault.Error{
			Kind: fault.Host, Op: "reach a secure processor", Err: fmt.Errorf("KVM is not usable: %s", kvm.Why),
			Fix: kvm.Fix, Hardware: true,
		}
	}
	var caps qmp.SEVCapabilities
	program := append(append([]string{}, facts.Emulator...), facts.QEMU)
	err := host.Ask(ctx, program, []string{"-accel", "kvm"}, func(ctx context.Context, c *qmp.Conn) (err error) {
		caps, err = qmp.QuerySEVCapabilities{}.Execute(ctx, c)
		return err
	})
	if err != nil {
		return nil, &fault.Error{Kind: fault.Host, Op: "show a SEV platform", Err: err, Hardware: !facts.Emulated()}
	}
	return &exchange.Platform{
		Schema: exchange.PlatformSchema, Emulated: facts.Emulated(), PDH: caps.PDH, CertChain: caps.CertChain,
		CPU0ID: caps.CPU0ID, CBitPos: caps.CBitPos, ReducedPhysBits: caps.ReducedPhysBits,
	}, nil
}

// WithCEK puts the chip's certificate as AMD signed it, 2084 bytes, in place of the one that
// the platform exported without a signature. It must be for the same key and, unless the
// platform is emulated, verify up to AMD's root.
func WithCEK(p *exchange.Platform, cek []byte) error {
	refuse := func(err error) error {
		return &fault.Error{
			Kind: fault.Spec, Op: "use the signed CEK", Err: err,
			Fix: "take it from AMD by the chip's ID: " + sev.CEKAddress(p.CPU0ID),
		}
	}
	chain, err := sev.ParseChain(p.PDH, p.CertChain)
	if err != nil {
		return refuse(err)
	}
	if chain, err = chain.WithCEK(cek); err != nil {
		return refuse(err)
	}
	roots, err := sev.AMDRoots()
	if err != nil {
		return err
	}
	if _, err = chain.Verify(roots); err != nil && !(p.Emulated && errors.Is(err, sev.ErrUntrusted)) {
		return refuse(err)
	}
	p.CertChain = chain.Bytes()
	return nil
}
