package main

import (
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/sev/kds"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
)

// need is something that a vendor publishes.
type need struct {
	Kind bundle.Kind `json:"kind"`
	URL  string      `json:"url"`
	What string      `json:"what"`
}

// Addresses of Intel's service (PCS, version 4).
const (
	intelServer  = "https://api.trustedservices.intel.com"
	intelRootCRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
)

// needsOf lists what the flags ask for.
func needsOf(c *urfave.Context, s *cli.IO) (list []need, err error) {
	product, known := kds.ParseLine(c.String("product"))
	if !known && c.IsSet("product") {
		return nil, cli.Choice("product", "product line", c.String("product"), lineNames())
	}
	if file := c.String("report"); file != "" {
		e, err := evidenceOf(s, file)
		if err != nil {
			return nil, err
		}
		more, note, err := reportNeeds(e, product)
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--report %s: %w", file, err))
		}
		if note != "" {
			s.Say("%s: %s", file, note)
		}
		list = append(list, more...)
	}
	if file := c.String("quote"); file != "" {
		e, err := evidenceOf(s, file)
		if err != nil {
			return nil, err
		}
		more, err := quoteNeeds(e, c.Bool("early"))
		if err != nil {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--quote %s: %w", file, err))
		}
		list = append(list, more...)
	}
	if file := c.String("platform"); file != "" {
		p, err := readPlatform(s, file, "", "")
		if err != nil {
			return nil, err
		}
		if p.address() == "" {
			return nil, cli.Fail(cli.ExitUsage, fmt.Errorf("--platform %s: it has no chip ID", file), p.whereCEK()...)
		}
		list = append(list, need{bundle.CEK, p.address(), "signed CEK of the chip"})
	}
	return list, nil
}

// reportNeeds is what a report is judged by, and what of it no server gives.
func reportNeeds(e *evidence.Evidence, product kds.Line) (list []need, note string, err error) {
	if e.Report == nil {
		return nil, "", fmt.Errorf("it is a quote of TDX: --quote")
	}
	r := e.Report
	line, ok := r.Line()
	if product != "" {
		if ok && product != line {
			return nil, "", fmt.Errorf("its processor is of the line %s, not %s", line, product)
		}
		line, ok = product, true
	}
	switch {
	case !ok && r.Version < 3:
		return nil, "", fmt.Errorf(
			"a report of version %d does not name its processor: say which line it is of, with --product %s",
			r.Version,
			strings.Join(lineNames(), "|"),
		)
	case !ok:
		return nil, "", fmt.Errorf(
			"its processor is of no line that is known (family %#x, model %#x)",
			r.Family,
			r.Model,
		)
	}
	crl := need{bundle.AMDCRL, kds.CRLURL(line, r.Signer()), "authorities that ARK-" + string(line) + " has revoked"}
	switch {
	case r.Signer() != kds.VCEK:
		return []need{crl},
			"a VLEK signed it, whose certificate only the provider gives: ask it, then latchkey bundle add", nil
	case r.Masked():
		return []need{crl},
			"the chip's ID is masked: its certificate must come from the host, then latchkey bundle add", nil
	}
	tcb := kds.ParseTCB(r.ReportedTCB, line)
	vcek := kds.VCEKURL(line, r.ChipID[:], tcb)
	return []need{{bundle.Endorsement, vcek, "VCEK of the chip for " + tcb.Text(line)}, crl}, "", nil
}

func lineNames() (names []string) {
	for _, l := range kds.Lines() {
		names = append(names, strings.ToLower(string(l)))
	}
	return names
}

func quoteNeeds(e *evidence.Evidence, early bool) ([]need, error) {
	if e.Quote == nil {
		return nil, fmt.Errorf("it is a report of SEV-SNP: --report")
	}
	p, err := e.Quote.Claimed()
	if err != nil {
		return nil, err
	}
	ca := authorityNamed(p.X509.Issuer.CommonName)
	return intelNeeds([]string{hex.EncodeToString(p.FMSPC)}, []string{ca}, early), nil
}

// authorityNamed is what Intel's service calls an authority over platforms.
func authorityNamed(commonName string) string {
	if strings.Contains(commonName, "Platform CA") {
		return "platform"
	}
	return "processor"
}

// intelNeeds is the collateral of families of platforms and of authorities.
func intelNeeds(families, authorities []string, early bool) []need {
	update := map[bool]string{true: "early", false: "standard"}[early]
	list := []need{{bundle.RootCRL, intelRootCRL, "certificates that Intel's root has revoked"}}
	for _, ca := range authorities {
		list = append(list, need{
			bundle.PCKCRL, intelServer + "/sgx/certification/v4/pckcrl?ca=" + ca + "&encoding=der",
			"platforms that the " + ca + " authority has revoked",
		})
	}
	for _, f := range families {
		list = append(list, need{
			bundle.TCBInfo, intelServer + "/tdx/certification/v4/tcb?fmspc=" + f + "&update=" + update,
			"states of platforms of family " + f,
		})
	}
	return append(list, need{
		bundle.QEIdentity, intelServer + "/tdx/certification/v4/qe/identity?update=" + update,
		"identity of the quoting enclave",
	})
}

// renewals is what would bring a bundle up to date.
func renewals(b *bundle.Bundle, early bool) (list []need) {
	var lines []kds.Line
	var families, authorities []string
	for i := range b.Parts {
		switch p := &b.Parts[i]; p.Kind {
		case bundle.Endorsement, bundle.AMDCRL:
			if l, ok := lineOf(p); ok && !slices.Contains(lines, l) {
				lines = append(lines, l)
			}
		case bundle.TCBInfo:
			if t, err := collateral.ParseTCBInfo(p.Data); err == nil {
				families = append(families, hex.EncodeToString(t.FMSPC))
			}
		case bundle.PCKCRL:
			authorities = append(authorities, authorityNamed(string(p.Data)))
		}
	}
	for _, l := range lines {
		for _, signer := range []kds.Signer{kds.VCEK, kds.VLEK} { // each has a list of its own
			what := fmt.Sprintf("authorities for %ss that ARK-%s has revoked", signer, l)
			list = append(list, need{bundle.AMDCRL, kds.CRLURL(l, signer), what})
		}
	}
	slices.Sort(families)
	slices.Sort(authorities)
	if families = slices.Compact(families); len(families) > 0 {
		list = append(list, intelNeeds(families, slices.Compact(authorities), early)...)
	}
	return list
}

func lineOf(p *bundle.Part) (kds.Line, bool) {
	if p.Kind == bundle.AMDCRL {
		c, err := kds.ParseCRL(p.Data)
		if err != nil {
			return "", false
		}
		return c.Line, c.Line != ""
	}
	c, err := kds.ParseCertificate(p.Data)
	if err != nil {
		return "", false
	}
	return c.Line, true
}

func printURLs(c *urfave.Context, s *cli.IO) error {
	list, err := needsOf(c, s)
	if err != nil {
		return err
	}
	if list == nil {
		return cli.Usagef("urls: name what is to be judged: --report, --quote or --platform")
	}
	if c.Bool("json") {
		return s.JSON(map[string]any{"schema": "latchkey.bundle-urls/1", "urls": list})
	}
	for _, n := range list {
		if strings.HasPrefix(n.URL, intelServer) && n.Kind != bundle.RootCRL {
			s.Say(
				"save Intel's answers with their headers (curl -i), where the chains are that vouch for them",
			)
			break
		}
	}
	for _, n := range list {
		fmt.Fprintf(s.Out, "# %s\n%s\n", cli.Escape(n.What), n.URL)
	}
	return nil
}
