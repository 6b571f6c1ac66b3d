package front

import (
	"strings"
	"testing"

	"github.com/vmlatch/vmlatch/firmware/swtee/internal/cmdline"
)

// take takes a command line of monitors.
func take(t testing.TB, words ...string) (*Args, error) {
	t.Helper()
	opts, err := cmdline.Parse(words)
	if err != nil {
		return nil, err
	}
	a := NewArgs(opts)
	for _, o := range opts {
		switch o.Name {
		case "chardev":
			err = a.TakeChardev(o)
		case "qmp":
			err = a.TakeQMP(o)
		default:
			a.Keep(o)
		}
		if err != nil {
			return nil, err
		}
	}
	for i := range a.monitors {
		a.socket(&a.monitors[i], 40+i)
	}
	return a, nil
}

func TestMonitors(t *testing.T) {
	a, err := take(t,
		"-chardev", "socket,id=m,fd=5,server=on,wait=off,logfile=x,,y", "-mon", "chardev=m,mode=control",
		"-chardev", "socket,id=con,fd=6,server=on,wait=off", "-qmp", "unix:/tmp/a,,b.sock,server=on,wait=off")
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(a.List(), " ")
	want := "-chardev socket,id=m,logfile=x,,y,fd=40 -mon chardev=m,mode=control " +
		"-chardev socket,id=con,fd=6,server=on,wait=off " +
		"-chardev socket,id=swtee-qmp1,fd=41 -qmp chardev:swtee-qmp1"
	if got != want {
		t.Errorf("command line\n%s\nwant\n%s", got, want)
	}
	if m := a.monitors; m[1].path != "/tmp/a,b.sock" || !m[0].listen || m[0].fd != 5 {
		t.Errorf("monitors %+v", m)
	}
}

func TestMonitorsThatCannotBeTakenOver(t *testing.T) {
	for line, want := range map[string]string{
		"-qmp stdio":   "unix:PATH",
		"-qmp tcp:x:1": "unix:PATH",
		"-qmp unix:/x": "server=on",
		"-chardev file,id=m,path=x -mon chardev=m,mode=control":    "unix sockets only",
		"-chardev socket,id=m,fd=one -mon chardev=m,mode=control":  "inherited socket",
		"-chardev socket,id=m,fd=1 -mon chardev=m,mode=control":    "inherited socket",
		"-chardev socket,id=m,path=/x -mon chardev=m,mode=control": "server=on",
	} {
		if _, err := take(t, strings.Fields(line)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", line, err, want)
		}
	}
}
