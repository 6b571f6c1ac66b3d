package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	urfave "github.com/urfave/cli/v2"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
)

// debugVar is the environment variable that switches traces on: a list of topics.
const debugVar = "VMLATCH_DEBUG"

// debugTrace is the trace that the user asked for, on standard error. Topics that do
// not exist are an error: they would be waited for in vain.
func debugTrace(s *cli.IO) (launcher.Trace, error) {
	out := &tracer{w: s.Err, start: time.Now()}
	t := launcher.Trace{Step: func(string) {}}
	for topic := range strings.SplitSeq(os.Getenv(debugVar), ",") {
		switch topic {
		case "":
		case "steps":
			t.Step = func(name string) { out.line("step", name) }
		case "qmp":
			options := &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: brief}
			t.QMP = slog.New(slog.NewTextHandler(qmpLines{out}, options))
		default:
			return t, cli.Usagef("%s: unknown topic %q; the topics are steps and qmp", debugVar, topic)
		}
	}
	return t, nil
}

// trace traces what is done with the command's context.
func trace(c *urfave.Context, s *cli.IO) error {
	t, err := debugTrace(s)
	if err == nil {
		c.Context = launcher.WithTrace(c.Context, t)
	}
	return err
}

// tracer writes lines that begin with the milliseconds since the start.
type tracer struct {
	mu    sync.Mutex
	w     io.Writer
	start time.Time
}

func (t *tracer) line(what, text string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	fmt.Fprintf(t.w, "debug: %8.1f ms  %s %s\n", float64(time.Since(t.start).Microseconds())/1000, what,
		cli.Escape(text))
}

// qmpLines takes the records of a log.
type qmpLines struct{ *tracer }

func (q qmpLines) Write(b []byte) (int, error) {
	q.line("qmp", strings.TrimSpace(string(b)))
	return len(b), nil
}

// brief leaves out of a record what every line has.
func brief(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}
