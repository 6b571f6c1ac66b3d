package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/firmware/evidence/bundle"
)

// fetcher gets parts from the vendors' servers. What it gets is verified like all else, so the
// servers need no trust.
type fetcher struct {
	client *http.Client
	at     func(url string) string // where an address is really asked for: tests play the servers
	pause  time.Duration           // between two requests for certificates of chips
	retry  time.Duration           // after an answer that says to come back, without a time
	say    func(string, ...any)
	asked  time.Time // when such a certificate was last asked for
}

// Pauses. AMD's server gives one certificate of a chip about each ten seconds.
const (
	chipPause    = 10 * time.Second
	retryPause   = 15 * time.Second
	requestTime  = 30 * time.Second
	maxAttempts  = 5
	maxRedirects = 3
)

func newFetcher(s *cli.IO) *fetcher {
	return &fetcher{
		client: &http.Client{Timeout: requestTime, CheckRedirect: sameServer},
		at:     func(u string) string { return u }, pause: chipPause, retry: retryPause, say: s.Say,
	}
}

// sameServer follows a redirection only where it leads to the same server.
func sameServer(r *http.Request, via []*http.Request) error {
	if len(via) > maxRedirects || r.URL.Host != via[0].URL.Host || r.URL.Scheme != via[0].URL.Scheme {
		return fmt.Errorf("%w: %s", errElsewhere, r.URL.Redacted())
	}
	return nil
}

// errElsewhere means that a server leads to a different one.
var errElsewhere = errors.New("the server leads elsewhere, which is not followed")

// errLater means that a server asks to come back later.
var errLater = errors.New("the server asks to come back later")

// get gets one part, and tries again where that may help.
func (f *fetcher) get(ctx context.Context, n need) (*bundle.Found, error) {
	var last error
	for attempt := range maxAttempts {
		if n.Kind == bundle.Endorsement || n.Kind == bundle.CEK {
			if err := f.sleep(ctx, f.pause-time.Since(f.asked)); err != nil {
				return nil, err
			}
			f.asked = time.Now()
		}
		found, wait, err := f.once(ctx, n)
		if err == nil || wait < 0 {
			return found, err
		}
		last = err
		if attempt == maxAttempts-1 {
			break
		}
		f.say("%s: %v; trying again in %v", n.What, err, wait.Round(time.Second))
		if err := f.sleep(ctx, wait); err != nil {
			return nil, fmt.Errorf("%w (last: %w)", err, last)
		}
	}
	return nil, last
}

func (f *fetcher) sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return ctx.Err()
	}
}

// once asks once. wait is how long to wait before the next time, below 0 for never.
func (f *fetcher) once(ctx context.Context, n need) (found *bundle.Found, wait time.Duration, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, f.at(n.URL), nil)
	if err != nil {
		return nil, -1, err
	}
	request.Header.Set("User-Agent", "latchkey")
	answer, err := f.client.Do(request)
	if err != nil {
		wait := f.retry
		var name *net.DNSError
		if ctx.Err() != nil || errors.Is(err, errElsewhere) || errors.Is(err, syscall.ECONNREFUSED) ||
			errors.As(err, &name) && name.IsNotFound {
			wait = -1
		}
		if u := (*url.Error)(nil); errors.As(err, &u) { // whose text repeats the address
			err = u.Err
		}
		return nil, wait, err
	}
	defer answer.Body.Close()
	switch code := answer.StatusCode; {
	case code == http.StatusTooManyRequests, code >= http.StatusInternalServerError:
		return nil, f.after(answer), fmt.Errorf("%w (%s)", errLater, answer.Status)
	case code == http.StatusNotFound:
		return nil, -1, errors.New("the server does not know it (404)")
	case code != http.StatusOK:
		return nil, -1, fmt.Errorf("the server answers %s", answer.Status)
	}
	b, err := io.ReadAll(io.LimitReader(answer.Body, bundle.MaxSize+1))
	switch {
	case err != nil:
		return nil, f.retry, fmt.Errorf("the answer was cut off: %w", err)
	case len(b) > bundle.MaxSize:
		return nil, -1, fmt.Errorf("the answer has more than %d bytes", bundle.MaxSize)
	}
	if found, err = bundle.Recognise(b); err != nil {
		return nil, -1, fmt.Errorf("the answer holds something else: %w", err)
	}
	for name, values := range answer.Header {
		if !strings.HasSuffix(strings.ToLower(name), "issuer-chain") {
			continue
		}
		for _, v := range values {
			if chain, err := url.PathUnescape(v); err == nil {
				found.Chains = append(found.Chains, []byte(chain))
			}
		}
	}
	return found, 0, nil
}

// after is how long a server asks to wait, in seconds or until a time.
func (f *fetcher) after(answer *http.Response) time.Duration {
	text := answer.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 16); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(text); err == nil {
		return max(0, time.Until(t))
	}
	return f.retry
}

func fetchBundle(c *urfave.Context, s *cli.IO) error {
	args, err := cli.Args(c, "fetch", "BUNDLE")
	if err != nil {
		return err
	}
	if c.Duration("timeout") <= 0 {
		return cli.Usagef("--timeout %v: must be above 0", c.Duration("timeout"))
	}
	roots, err := bundleRoots(c)
	if err != nil {
		return err
	}
	list, err := needsOf(c, s)
	if err != nil {
		return err
	}
	if info, err := os.Stat(filepath.Dir(args[1])); err != nil || !info.IsDir() { // before a network is used for it
		return cli.Usagef("%s: there is no directory %s", args[1], filepath.Dir(args[1]))
	}
	b, err := openBundle(args[1])
	if err != nil {
		return err
	}
	if list == nil {
		list = renewals(b, c.Bool("early"))
	}
	if len(list) == 0 {
		return cli.Fail(cli.ExitUsage, fmt.Errorf("%s: there is nothing to renew in it", args[1]),
			"name what is to be judged: --report, --quote or --platform")
	}
	signalled, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM)
	defer stop() // Ctrl-C ends the asking; what was had by then is kept
	ctx, cancel := context.WithTimeout(signalled, c.Duration("timeout"))
	defer cancel()
	k := &keeping{Schema: keptSchema, Bundle: args[1], Failed: []failure{}}
	got := newFetcher(s).all(ctx, s, list, k)
	if len(got) > 0 {
		err = k.keep(s, got, roots)
	} else {
		k.Parts = len(b.Parts)
	}
	if err == nil {
		err = k.report(c, s)
	}
	if err != nil || len(k.Failed) == 0 {
		return err
	}
	fail := &cli.Error{
		Code: cli.ExitFailure, Quiet: c.Bool("json"),
		Err: fmt.Errorf("%s could not be had", cli.Count(len(k.Failed), "part")),
	}
	if signalled.Err() != nil {
		fail.Code, fail.Err = cli.ExitInterrupted, errors.New("interrupted; what was had by then is kept")
	}
	return fail
}

// all gets everything that can be had. What fails does not stop the rest, but the end of the
// time does.
func (f *fetcher) all(ctx context.Context, s *cli.IO, list []need, k *keeping) (got []source) {
	for _, n := range list {
		var found *bundle.Found
		err := ctx.Err()
		if err == nil {
			found, err = f.get(ctx, n)
		}
		if err == nil {
			got = append(got, source{n.What, found})
			continue
		}
		what := failure{Source: n.What, Kind: n.Kind, URL: n.URL}
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil:
			k.fail(s, what, fmt.Errorf("no time left: %w", err), "--timeout allows more; it is at "+n.URL)
		case ctx.Err() != nil:
			k.fail(s, what, errors.New("interrupted"))
		default:
			k.fail(s, what, err, "it was asked for at "+n.URL)
		}
	}
	return got
}
