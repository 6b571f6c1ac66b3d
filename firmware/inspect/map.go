package inspect

import (
	"fmt"
	"html"
	"io"
	"math/bits"
	"strings"
)

// Colours of the map, by cover.
var colours = map[Cover]string{Contents: "#2e7d32", Presence: "#f9a825", Nothing: "#cfd8dc"}

// Map draws the address map as SVG: a row for each region, taller for larger ones,
// with a field for each technology.
func (r *Report) Map(w io.Writer, title string) error {
	const width, left, field, gap = 900, 470, 90, 6
	var b strings.Builder
	y := 92
	text := func(x, y int, class, s string) {
		fmt.Fprintf(&b, "<text x=\"%d\" y=\"%d\" class=\"%s\">%s</text>\n", x, y, class, html.EscapeString(s))
	}
	for i, t := range Technologies() {
		text(left+i*(field+gap)+field/2, 84, "head", t)
	}
	var end uint64
	for i, region := range r.Regions {
		if i > 0 && region.GPA > end {
			text(20, y+16, "small", fmt.Sprintf("… %s not described", bytesOf(region.GPA-end)))
			y += 26
		}
		end = max(end, region.GPA+region.Size)
		height := 24 + 3*max(0, bits.Len64(region.Size)-12)
		where := "memory"
		if region.Image {
			where = "image"
		}
		fmt.Fprintf(&b, "<rect x=\"16\" y=\"%d\" width=\"%d\" height=\"%d\" class=\"%s\"/>\n", y, left-32, height,
			where)
		text(24, y+17, "what", region.What)
		text(left-24, y+17, "address", fmt.Sprintf("%#x  %s", region.GPA, bytesOf(region.Size)))
		for i, t := range Technologies() {
			fmt.Fprintf(
				&b,
				"<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"%s\"><title>%s: %s</title></rect>\n",
				left+i*(field+gap),
				y,
				field,
				height,
				colours[region.Cover[t]],
				t,
				region.Cover[t],
			)
		}
		y += height + 4
	}
	legend := y + 20
	for i, c := range []struct {
		cover Cover
		say   string
	}{{Contents, "contents measured"}, {Presence, "only its presence, type and address"}, {Nothing, "not measured"}} {
		fmt.Fprintf(&b, "<rect x=\"%d\" y=\"%d\" width=\"16\" height=\"16\" fill=\"%s\"/>\n", 16+i*280, legend,
			colours[c.cover])
		text(38+i*280, legend+13, "what", c.say)
	}
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif">
<style>
.title { font-size: 20px; font-weight: bold } .what { font-size: 13px } .small { font-size: 12px; fill: #607d8b }
.address { font-size: 12px; text-anchor: end; font-family: monospace }
.head { font-size: 13px; text-anchor: middle; font-weight: bold }
.image { fill: #e3f2fd; stroke: #90caf9 } .memory { fill: #f3e5f5; stroke: #ce93d8 }
</style>
<rect width="100%%" height="100%%" fill="white"/>
<text x="16" y="32" class="title">%s</text>
<text x="16" y="54" class="small">Guest-physical addresses, upward. Blue: the image, below 4 GiB.
Violet: memory that its metadata names. SHA-256 %s</text>
%s</svg>
`, width, legend+36, html.EscapeString(title), r.SHA256[:16]+"…", b.String())
	return err
}

func bytesOf(n uint64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
