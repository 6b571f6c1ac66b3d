package broker

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"html"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Page is a web page on which a person approves requests. It has no script. Who opens its link,
// which works once, is who may approve; other sites, and other names of this machine, get nothing.
type Page struct {
	broker *Broker
	base   string   // of links
	hosts  []string // that a request's Host may be

	mu      sync.Mutex
	token   string               // of the link that was not opened yet
	cookies map[string]time.Time // SHA-256 of those that were given, and when
}

const (
	cookieName = "latchkey"
	cookieTime = 12 * time.Hour
	maxCookies = 16
)

// NewPage makes the page for a listener, TCP's on a loopback address or a unix socket. Further
// names may be those under which a tunnel shows it.
func NewPage(b *Broker, addr net.Addr, hosts ...string) (*Page, error) {
	p := &Page{broker: b, hosts: hosts, base: "http://localhost", cookies: map[string]time.Time{}}
	if tcp, ok := addr.(*net.TCPAddr); ok {
		if !tcp.IP.IsLoopback() {
			return nil, fmt.Errorf("%w: approvals: %v: must be an address of this machine alone (127.0.0.1, ::1)",
				ErrConfig, addr)
		}
		p.base = "http://" + tcp.String()
		p.hosts = append(p.hosts, tcp.String(), net.JoinHostPort("localhost", strconv.Itoa(tcp.Port)))
	} else {
		p.hosts = append(p.hosts, "localhost")
	}
	return p, nil
}

// Link is a link that opens the page once. An earlier one that was not opened is void.
func (p *Page) Link() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token = rand.Text()
	return p.base + "/?token=" + p.token
}

// Server is a server of the page, with limits.
func (p *Page) Server() *http.Server {
	return &http.Server{
		Handler: p, ReadTimeout: messageTime, WriteTimeout: messageTime, IdleTimeout: time.Minute,
		MaxHeaderBytes: 16 << 10,
	}
}

// ServeHTTP shows the requests, and takes a person's decision on one.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	for name, value := range map[string]string{
		"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store", "Referrer-Policy": "no-referrer",
		"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cross-Origin-Opener-Policy": "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Content-Security-Policy": "default-src 'none'; style-src 'sha256-" + styleHash() +
			"'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
	} {
		h.Set(name, value)
	}
	r.Body = http.MaxBytesReader(w, r.Body, 4<<10)
	switch {
	case !slices.Contains(p.hosts, r.Host): // a name that an attacker lets point here
		fail(w, http.StatusMisdirectedRequest, "this page is not for that name")
	case r.URL.Path != "/" && r.URL.Path != "/decide":
		fail(w, http.StatusNotFound, "there is no such page")
	case r.URL.Path == "/" && r.Method != http.MethodGet, r.URL.Path == "/decide" && r.Method != http.MethodPost:
		fail(w, http.StatusMethodNotAllowed, "not this way")
	case r.URL.Path == "/" && r.URL.Query().Has("token"):
		p.enter(w, r)
	case !p.admitted(r):
		fail(
			w,
			http.StatusForbidden,
			"open the link that the broker printed; “latchkey requests --page” prints a new one",
		)
	case r.URL.Path == "/decide":
		p.decide(w, r)
	default:
		p.show(w, "")
	}
}

// enter gives a cookie for the link's token, once.
func (p *Page) enter(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	good := p.token != "" && subtle.ConstantTimeCompare([]byte(r.URL.Query().Get("token")), []byte(p.token)) == 1
	cookie := rand.Text()
	if good {
		p.token = ""
		for len(p.cookies) >= maxCookies {
			oldest, at := "", time.Time{}
			for c, t := range p.cookies {
				if oldest == "" || t.Before(at) {
					oldest, at = c, t
				}
			}
			delete(p.cookies, oldest)
		}
		p.cookies[hashText(cookie)] = time.Now()
	}
	p.mu.Unlock()
	if !good {
		fail(w, http.StatusForbidden, "this link was opened before; “latchkey requests --page” prints a new one")
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: cookie, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode,
		MaxAge: int(cookieTime / time.Second),
	})
	// A cookie that is strict is not sent on where another site's link led here; a page of this
	// site's own leads on.
	w.Header().Set("Refresh", "0; url=/")
	_, _ = fmt.Fprint(w, head("")+`<p><a href="/">Go on to the requests.</a></p></html>`)
}

func hashText(text string) string {
	sum := sha256.Sum256([]byte(text))
	return string(sum[:])
}

func (p *Page) admitted(r *http.Request) bool {
	c, err := r.Cookie(cookieName)
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.cookies[hashText(c.Value)]
	return ok && time.Since(at) < cookieTime
}

// sameOrigin reports whether a form was sent by this page itself.
func sameOrigin(r *http.Request) bool {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" {
		return site == "same-origin"
	}
	return r.Header.Get("Origin") == "http://"+r.Host
}

func (p *Page) decide(w http.ResponseWriter, r *http.Request) {
	if !sameOrigin(r) {
		fail(w, http.StatusForbidden, "another site sent this")
		return
	}
	number, err := strconv.ParseUint(r.PostFormValue("request"), 10, 64)
	answer, shown := r.PostFormValue("answer"), r.PostFormValue("shown")
	if err != nil || answer != "approve" && answer != "deny" || shown == "" {
		fail(w, http.StatusBadRequest, "this is not what the page sends")
		return
	}
	if err := p.broker.Decide(number, answer == "approve", shown); err != nil {
		w.WriteHeader(http.StatusConflict)
		p.show(w, fmt.Sprintf("Request %d: %v.", number, err))
		return
	}
	done := map[string]string{"approve": "approved", "deny": "denied"}[answer]
	p.show(w, fmt.Sprintf("Request %d is %s.", number, done))
}

func fail(w http.ResponseWriter, code int, text string) {
	w.WriteHeader(code)
	_, _ = fmt.Fprintf(w, "%s<p class=note>%s.</p></html>", head(""), html.EscapeString(text))
}
