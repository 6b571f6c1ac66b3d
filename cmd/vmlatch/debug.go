package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vmlatch/vmlatch/cmd/internal/cli"
	"github.com/vmlatch/vmlatch/launcher"
)

// debugVar is the environment variable that switches traces on: a list of topics.
const debugVar = "VMLATCH_DEBUG"

// withDebug is the context of commands: what they do is traced on standard error if the
// user asked for it. Topics that do not exist are an error: they would be waited for in
// vain.
func withDebug(ctx context.Context, s *cli.IO) (context.Context, error) {
	out := &tracer{w: s.Err, start: time.Now()}
	var t launcher.Trace
	for topic := range strings.SplitSeq(os.Getenv(debugVar), ",") {
		switch topic {
		case "":
		case "steps":
			t.Step = func(name string) { out.line("step", name) }
		case "qmp":
			t.QMP = slog.New(qmpLines{out})
		default:
			return ctx, cli.Usagef("%s: unknown topic %q; the topics are steps and qmp", debugVar, topic)
		}
	}
	return launcher.WithTrace(ctx, t), nil
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

// qmpLines writes the records of package qmp as lines: command, arguments, reply.
type qmpLines struct{ *tracer }

func (qmpLines) Enabled(context.Context, slog.Level) bool { return true }

func (q qmpLines) WithAttrs([]slog.Attr) slog.Handler { return q }

func (q qmpLines) WithGroup(string) slog.Handler { return q }

func (q qmpLines) Handle(_ context.Context, r slog.Record) error {
	values := map[string]string{}
	r.Attrs(func(a slog.Attr) bool {
		values[a.Key] = a.Value.Resolve().String()
		return true
	})
	line := values["command"]
	if args := values["args"]; args != "" {
		line += " " + args
	}
	answer := values["reply"]
	if err := values["err"]; err != "" && err != "<nil>" {
		answer = err
	}
	q.line("qmp", line+" -> "+answer+" ("+values["took"]+")")
	return nil
}
