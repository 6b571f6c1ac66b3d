package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
	"github.com/vmlatch/vmlatch/firmware/evidence/policy"
	"github.com/vmlatch/vmlatch/firmware/refusal"
	"github.com/vmlatch/vmlatch/firmware/sev/report"
	"github.com/vmlatch/vmlatch/firmware/tdx/attr"
	"github.com/vmlatch/vmlatch/firmware/tdx/ccel"
	"github.com/vmlatch/vmlatch/firmware/tdx/collateral"
	"github.com/vmlatch/vmlatch/firmware/tdx/quote"
)

// judgement is all that evidence is judged by.
type judgement struct {
	sources *evidence.Sources
	test    *bundle.Roots // of --trust-root; nil for none
	demands *evidence.Demands
	policy  *policy.File // nil for --genuine
	at      time.Time
}

func newJudgement(c *urfave.Context, technology string) (*judgement, error) {
	if c.String("policy") != "" && c.Bool("genuine") {
		return nil, cli.Usagef("--policy and --genuine: not both")
	}
	if c.String("policy") == "" && !c.Bool("genuine") {
		err := errors.New("say what is demanded: --policy FILE, or --genuine to judge only whether it is genuine")
		return nil, cli.Fail(cli.ExitUsage, err, `"latchkey help appliance-policy" describes the file`)
	}
	j := &judgement{sources: &evidence.Sources{Roots: bundle.Genuine()}}
	var err error
	if j.at, err = asOf(c); err != nil {
		return nil, err
	}
	if err := j.readSources(c); err != nil {
		return nil, err
	}
	if c.Bool("genuine") {
		j.demands = genuine()
	} else if err := j.readPolicy(c.String("policy"), technology); err != nil {
		return nil, err
	}
	return j, j.readRest(c)
}

// genuine demands nothing of a guest but that its evidence is genuine.
func genuine() *evidence.Demands {
	return &evidence.Demands{
		Report: &report.Policy{
			AllowDebug: true, AllowSMT: true, AllowMigrationAgent: true, AllowProvisional: true, AllowVLEK: true,
		},
		Quote: &quote.Policy{
			AllowDebug: true, AllowNoSEPTVEDisable: true, AllowAttributes: ^attr.Attributes(0), AllowServiceTD: true,
			AcceptStatus: collateral.Statuses(), NoCollateral: true,
		},
	}
}

// readSources reads the parts by which is judged.
func (j *judgement) readSources(c *urfave.Context) (err error) {
	s := j.sources
	if s.Bundle, err = readBundle(c.String("bundle")); err != nil {
		return err
	}
	for _, f := range []struct {
		flag  string
		limit int64
		kind  bundle.Kind
		to    *[]byte
		what  string
	}{
		{"ek", report.MaxTable, bundle.Endorsement, &s.EK, "endorsement certificate (VCEK or VLEK)"},
		{"crl", bundle.MaxSize, bundle.AMDCRL, &s.CRL, "revocation list of AMD"},
	} {
		if c.String(f.flag) == "" {
			continue
		}
		found, err := recogniseFile(c.String(f.flag))
		if err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--%s: %w", f.flag, err))
		}
		for _, p := range found.Parts {
			if p.Kind != f.kind {
				continue
			}
			if *f.to != nil {
				return cli.Fail(
					cli.ExitUsage,
					fmt.Errorf("--%s %s: there are several in it", f.flag, c.String(f.flag)),
					"give the one that is meant, or keep them in a bundle, which finds it: latchkey bundle add",
				)
			}
			*f.to = p.Data
		}
		if *f.to == nil {
			return cli.Usagef("--%s %s: there is no %s in it", f.flag, c.String(f.flag), f.what)
		}
	}
	if file := c.String("collateral"); file != "" {
		b, err := readLimited(file, collateral.MaxSize)
		if err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
		if s.Collateral, err = collateral.Parse(b); err != nil {
			return cli.Fail(cli.ExitUsage, fmt.Errorf("--collateral %s: %w", file, err),
				"it is one JSON object of texts; answers of Intel's service belong in a bundle: latchkey bundle add")
		}
	}
	if file := c.String("event-log"); file != "" {
		if s.Log, err = readLimited(file, ccel.MaxSize); err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
	}
	return nil
}

// readPolicy reads the owner's demands, and works out the digests.
func (j *judgement) readPolicy(file, technology string) (err error) {
	if j.policy, err = policy.Read(file); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	if j.policy.Lacks(technology) { // the verdict says so
		j.demands = &evidence.Demands{Name: j.policy.Name}
	} else if j.demands, err = evidence.DemandsOf(j.policy, technology); err != nil {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: %w", file, err))
	}
	if root := j.policy.Root(); root != "" { // that root alone, and no genuine one
		if j.test, err = readRoots(root); err != nil {
			return cli.Fail(cli.ExitUsage, err)
		}
		j.sources.Roots = *j.test
	}
	return nil
}

// readRest reads the flags that change demands and roots.
func (j *judgement) readRest(c *urfave.Context) (err error) {
	if text := c.String("report-data"); text != "" {
		b, err := reportData(text)
		if err != nil {
			return err
		}
		if j.demands.Report != nil {
			j.demands.Report.ReportData = b
		}
		if j.demands.Quote != nil {
			j.demands.Quote.ReportData = b
		}
	}
	file := c.String("trust-root")
	if file == "" {
		return nil
	}
	if j.policy != nil {
		return cli.Fail(cli.ExitUsage, errors.New("--trust-root: the policy says which roots count"),
			"a policy for test platforms has [emulated] root = FILE, and a name that ends in "+policy.EmulatedSuffix)
	}
	if j.test, err = readRoots(file); err != nil {
		return cli.Fail(cli.ExitUsage, err)
	}
	return nil
}

// reportData reads the 64 bytes that the guest was asked to show.
func reportData(text string) ([]byte, error) {
	b, err := hex.DecodeString(strings.TrimPrefix(strings.Join(strings.Fields(text), ""), "0x"))
	if err != nil {
		return nil, cli.Usagef("--report-data: must be 64 bytes in hex (128 digits): it is not hex")
	}
	if len(b) != 64 {
		return nil, cli.Fail(
			cli.ExitUsage,
			fmt.Errorf("--report-data: must be 64 bytes in hex (128 digits), has %d bytes", len(b)),
			"a shorter value is padded by whoever asked the guest: pad it as they did",
		)
	}
	return b, nil
}

// judge judges by the vendors' roots, and if the chain leads to none of them by a test root.
// Whether evidence is emulated follows from the root that it ends in.
func (j *judgement) judge(e *evidence.Evidence) *evidence.Verdict {
	v := evidence.Judge(e, j.sources, j.demands, j.at)
	if j.test != nil && !v.Genuine {
		test := *j.sources
		test.Roots = *j.test
		if w := evidence.Judge(e, &test, j.demands, j.at); w.Genuine || w.Refusal.Reason != refusal.Chain {
			v = w
		}
	}
	v.Explained = j.explain(e, v)
	return v
}

// readRoots reads test roots: AMD's, Intel's and those of SEV may stand in one file.
func readRoots(file string) (*bundle.Roots, error) {
	b, err := readLimited(file, bundle.MaxSize)
	if err != nil {
		return nil, err
	}
	return bundle.ParseRoots(file, b)
}
