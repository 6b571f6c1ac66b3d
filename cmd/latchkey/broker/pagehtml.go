package broker

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"html"
	"net/http"
	"strings"
	"time"
)

const style = `body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;
padding:0 1rem;color:#1c2330;background:#f6f7f9}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:0 0 .5rem}
section{background:#fff;border:1px solid #d5d9e0;border-radius:8px;padding:1rem 1.2rem;margin:1rem 0}
dl{display:grid;grid-template-columns:8rem 1fr;gap:.2rem .8rem;margin:.5rem 0}
dt{color:#5b6472}dd{margin:0;overflow-wrap:anywhere}
code{font-size:.85rem}
.new{background:#fff4d6;border-radius:4px;padding:.1rem .4rem}.emulated{color:#a33;font-weight:600}
.note{background:#e7effd;border-radius:6px;padding:.5rem .8rem}form{display:flex;gap:.8rem;margin-top:1rem}
button{font:inherit;padding:.45rem 1.2rem;border-radius:6px;border:1px solid #8891a0;background:#fff;cursor:pointer}
button.yes{background:#1a6b3c;border-color:#1a6b3c;color:#fff}
ul{margin:.3rem 0;padding-left:1.2rem}footer{color:#5b6472;font-size:.9rem}`

func styleHash() string {
	sum := sha256.Sum256([]byte(style))
	return base64.StdEncoding.EncodeToString(sum[:])
}

func head(more string) string {
	return `<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width">` +
		`<title>latchkey: requests</title><style>` + style + `</style>` + more
}

// show writes the page.
func (p *Page) show(w http.ResponseWriter, note string) {
	var b strings.Builder
	b.WriteString(head(`<meta http-equiv=refresh content="15; url=/">`))
	b.WriteString("<h1>Requests that wait for you</h1>")
	if note != "" {
		fmt.Fprintf(&b, "<p class=note>%s</p>", html.EscapeString(note))
	}
	list := p.broker.Waiting()
	for _, r := range list {
		r.html(&b)
	}
	if len(list) == 0 {
		b.WriteString("<p>There are none.</p>")
	}
	h := p.broker.Head()
	fmt.Fprintf(&b, "<footer><p>Broker <code>%s</code>.<br>The audit has %d lines, the last <code>%s</code>."+
		" The page looks again every 15 seconds.</p></footer></html>",
		html.EscapeString(p.broker.Key().String()), h.Seq,
		html.EscapeString(h.Hash))
	_, _ = w.Write([]byte(b.String()))
}

// html writes a request. All of it is escaped: names are the owner's, but what comes later may not
// be.
func (r *Request) html(b *strings.Builder) {
	e := html.EscapeString
	fmt.Fprintf(b, "<section><h2>%d: %s for %s</h2>", r.Number, e(list(r.Secrets)), e(r.Policy))
	if r.Emulated {
		b.WriteString("<p class=emulated>Emulated: this guest proves nothing.</p>")
	}
	if r.Trust != "" {
		fmt.Fprintf(b, "<p class=emulated>Trust: %s. The guest's host could have made this up.</p>", e(r.Trust))
	}
	chip := r.Chip
	if chip == "" {
		chip = "has no name"
	}
	b.WriteString("<dl>")
	for _, x := range [][2]string{
		{"Technology", r.Technology},
		{"Chip", chip},
		{"Digest", r.Digest},
		{"Launch", r.Launch},
		{"Since", r.Since.Format(time.RFC3339)},
		{"Last asked", r.Seen.Format(time.RFC3339)},
	} {
		fmt.Fprintf(b, "<dt>%s<dd><code>%s</code>", e(x[0]), e(x[1]))
	}
	b.WriteString("<dt>Compared<dd>")
	for _, c := range r.Changed {
		class := ""
		if strings.Contains(c, "new") || strings.Contains(c, "no name") {
			class = " class=new"
		}
		fmt.Fprintf(b, "<span%s>%s</span> ", class, e(c))
	}
	b.WriteString("</dl><p>Its evidence was verified. Not proven:</p><ul>")
	for _, n := range r.NotProven {
		fmt.Fprintf(b, "<li>%s", e(n))
	}
	b.WriteString("</ul>")
	if r.Answer != "" {
		fmt.Fprintf(b, "<p class=note>%s; the guest fetches it when it asks again.</p></section>", e(r.Answer))
		return
	}
	fmt.Fprintf(b, `<form method=post action="/decide"><input type=hidden name=request value=%d>`+
		`<input type=hidden name=shown value="%s"><button class=yes name=answer value=approve>Approve</button>`+
		`<button name=answer value=deny>Deny</button></form></section>`, r.Number, e(r.Shown()))
}
