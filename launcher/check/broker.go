package check

import (
	"strings"

	"github.com/vmlatch/vmlatch/firmware/evidence/exchange"
	"github.com/vmlatch/vmlatch/launcher/tee"
)

// asks reports whether the guest asks a broker for its secret, as its command line says.
func asks(s *tee.Subject) bool { return confidential(s) && exchange.HasWords(s.Kernel.Cmdline) }

// brokerChecks look at what a guest's command line says of its owner's broker.
func brokerChecks() []tee.Check {
	const source = "vmlatch help latch; latchguest(8)"
	return []tee.Check{
		{
			ID:       "broker-key-measured",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "broker",
			When:     func(s *tee.Subject) bool { return confidential(s) && s.Broker.Connect != "" },
			Cause: "the spec names no kernel, so which broker the guest believes cannot be seen here:" +
				" without a measured latch.key it would believe any",
			Fix:    "name kernel, initrd and cmdline; or see to it that the image's own command line has latch.key",
			Source: source,
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				return tee.Verify(exchange.HasWords(s.Kernel.Cmdline), "")
			},
		},
		{
			ID:       "console-closed",
			Severity: tee.Warn,
			OfSpec:   true,
			Key:      "kernel.cmdline",
			When:     asks,
			Cause:    "a person at the guest's console, or a disk of the host's, could come in next to the secret",
			Fix:      "change the command line, and the policy's copy of it: latchguest powers the guest off otherwise",
			Source:   source,
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				open := exchange.Doors(s.Kernel.Cmdline, exchange.AnyInitrd)
				return tee.Verify(open == nil, "%s", strings.Join(open, "; "))
			},
		},
		{
			ID:       "broker-source",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "kernel.cmdline",
			When:     asks,
			Cause:    "the guest would look for its secret where it cannot be",
			Fix: "latch.source=injected is for guests that are measured before they run;" +
				" leave it out for those that give evidence",
			Source: source,
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				w, err := exchange.ParseWords(s.Kernel.Cmdline)
				if err != nil {
					return tee.Failed, err.Error()
				}
				return tee.Verify((w.Source == exchange.FromInjected) == s.Traits().Measurable,
					"latch.source=%s", w.Source)
			},
		},
		{
			ID:       "broker-trust",
			Severity: tee.Refuse,
			OfSpec:   true,
			Key:      "kernel.cmdline",
			When:     func(s *tee.Subject) bool { return exchange.HasWords(s.Kernel.Cmdline) },
			Cause:    "the guest would prove itself in a way that it does not have, or that it should not have",
			Fix: "latch.trust=host is for guests whose host is trusted, and that have a [tpm]; confidential guests" +
				" prove themselves without the host's word",
			Source: source,
			Look: func(s *tee.Subject) (tee.Verdict, string) {
				w, err := exchange.ParseWords(s.Kernel.Cmdline)
				bad := ""
				switch {
				case err != nil: // others say so
				case w.Host && confidential(s):
					bad = "latch.trust=host in a confidential guest"
				case w.Host && !hasTPM(s):
					bad = "latch.trust=host without [tpm]"
				case !w.Host && !confidential(s):
					bad = "this guest is not confidential, and latch.trust=host is missing"
				}
				return tee.Verify(bad == "", "%s", bad)
			},
		},
	}
}
