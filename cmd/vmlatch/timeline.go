package main

import (
	"fmt"
	"strings"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher/rundir"
)

func newTimeline(s *cli.IO) *urfave.Command {
	return &urfave.Command{
		Name:         "timeline",
		Usage:        "show the steps of a VM's launch, and how long each took",
		ArgsUsage:    "NAME",
		Category:     catLook,
		BashComplete: completeNames,
		Description: `The steps are those of "start --debug"; of a VM that was held also those of the commands
that took it further. "accepted" is when its owner's broker accepted its evidence,
"received" when the guest had its secret.

Examples:

   vmlatch timeline guest
   vmlatch timeline --svg guest > launch.svg
   vmlatch timeline --json guest`,
		Flags: hostFlags(
			jsonFlag(), &urfave.BoolFlag{Name: "svg", Usage: "draw a picture (SVG)"},
		),
		Action: func(c *urfave.Context) error {
			_, d, e, err := findVM(c, s)
			if err != nil {
				return err
			}
			defer d.Close()
			if e.Record == nil || len(e.Record.Steps) == 0 {
				return cli.Fail(cli.ExitFailure, fmt.Errorf("%s: its record has no steps", e.Name),
					"records of an older vmlatch have none, and those of a launch that failed are gone")
			}
			t := timelineOf(e.Record)
			switch {
			case c.Bool("svg") && c.Bool("json"):
				return cli.Usagef("--svg and --json: one of them")
			case c.Bool("svg"):
				return t.svg(s)
			case c.Bool("json"):
				return s.JSON(t)
			}
			return t.print(s)
		},
	}
}

// timeline is what the JSON shows.
type timeline struct {
	Schema     string         `json:"schema"`
	Name       string         `json:"name"`
	Technology string         `json:"technology"`
	Emulated   bool           `json:"emulated"`
	Begun      time.Time      `json:"begun"`
	Took       float64        `json:"took-ms"`
	Steps      []timelineStep `json:"steps"`
}

type timelineStep struct {
	Step string  `json:"step"`
	At   float64 `json:"at-ms"`   // since the launch began
	Took float64 `json:"took-ms"` // until the next step began; 0 for a moment
}

func timelineOf(r *rundir.Record) *timeline {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	t := &timeline{
		Schema: "vmlatch.timeline/1", Name: r.Name, Technology: r.Technology, Emulated: r.Emulated,
		Begun: r.Steps[0].At,
	}
	for i, step := range r.Steps {
		x := timelineStep{Step: step.Name, At: max(0, ms(step.At.Sub(t.Begun)))} // a clock may be set back
		end := step.At
		switch last := i == len(r.Steps)-1; {
		case !last && !(step.Name == "paused" && r.Origin.Hold): // a held VM waits for a person
			end = r.Steps[i+1].At
		case last && r.Released != nil && r.Released.After(step.At):
			end = *r.Released
		}
		x.Took = max(0, ms(end.Sub(step.At)))
		t.Took = max(t.Took, x.At+x.Took)
		t.Steps = append(t.Steps, x)
	}
	return t
}

// title says whose launch it is.
func (t *timeline) title() string {
	title := fmt.Sprintf("%s: %s", t.Name, t.Technology)
	if t.Emulated {
		title += " (emulated: protects nothing)"
	}
	return fmt.Sprintf("%s, %s", title, took(t.Took))
}

// took writes a number of milliseconds.
func took(ms float64) string {
	if ms >= 1000 {
		return fmt.Sprintf("%.2f s", ms/1000)
	}
	return fmt.Sprintf("%.1f ms", ms)
}

const barWidth = 40

func (t *timeline) print(s *cli.IO) error {
	fmt.Fprintln(s.Out, t.title())
	table := s.Table(2)
	fmt.Fprintln(table, "STEP\tAT\tTOOK\t")
	for _, x := range t.Steps {
		from, to := int(x.At/t.scale()*barWidth), int((x.At+x.Took)/t.scale()*barWidth)
		from = min(from, barWidth-1)
		bar := strings.Repeat(" ", from) + strings.Repeat("█", max(1, min(to, barWidth)-from))
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", x.Step, took(x.At), took(x.Took), bar)
	}
	return table.Flush()
}

// scale is what the whole width stands for, in milliseconds.
func (t *timeline) scale() float64 { return max(t.Took, 0.001) }

func (t *timeline) svg(s *cli.IO) error {
	const left, width, line, top = 110, 560, 24, 58
	height := top + line*len(t.Steps) + 16
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="860" height="%d" viewBox="0 0 860 %d" `+
		`font-family="sans-serif" font-size="13">
<title>%s</title>
<style>.ground{fill:#fff}text{fill:#1f2328}.note{fill:#59636e}.bar{fill:#4a6fa5}.guest{fill:#4c9a57}.grid{stroke:#d0d7de}
@media (prefers-color-scheme:dark){.ground{fill:#0d1117}text{fill:#e6edf3}.note{fill:#9aa4af}.bar{fill:#6f9bdc}
.guest{fill:#63b570}.grid{stroke:#30363d}}</style>
<rect class="ground" width="860" height="%d" rx="8"/>
<text x="16" y="28" font-weight="bold" font-size="15">%s</text>
`, height, height, xmlText(t.title()), height, xmlText(t.title()))
	for i := range 5 {
		x := left + width*i/4
		fmt.Fprintf(&b, `<line class="grid" x1="%d" y1="50" x2="%d" y2="%d"/>`+
			`<text class="note" x="%d" y="46" text-anchor="middle" font-size="11">%s</text>`+"\n",
			x, x, height-12, x, took(t.scale()*float64(i)/4))
	}
	for i, x := range t.Steps {
		y, class := top+line*i, "bar"
		if x.Step == "prove" || x.Step == "accepted" || x.Step == "received" {
			class = "guest" // it runs
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%s</text>`+
			`<rect class="%s" x="%.1f" y="%d" width="%.1f" height="14" rx="2"/>`+
			`<text class="note" x="%d" y="%d">%s</text>`+"\n",
			left-10, y+12, xmlText(x.Step), class, left+x.At/t.scale()*width, y, max(2, x.Took/t.scale()*width),
			left+width+12, y+12, took(x.Took))
	}
	b.WriteString("</svg>\n")
	_, err := s.Out.Write([]byte(b.String()))
	return err
}

// xmlText is a text in an XML document (XML 1.0, 2.2 and 2.4). encoding/xml would link all of
// itself for it.
func xmlText(text string) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			return '\uFFFD'
		}
		return r
	}, text)
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", `"`, "&#34;", "'", "&#39;").Replace(text)
}
