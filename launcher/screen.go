package launcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/vmlatch/vmlatch/firmware/regular"
	"github.com/vmlatch/vmlatch/launcher/fault"
	"github.com/vmlatch/vmlatch/launcher/rundir"
	"github.com/vmlatch/vmlatch/qmp"
)

// maxScreen bounds the picture of a screen, in bytes.
const maxScreen = 256 << 20

// Screenshot is a picture of a guest's screen, in PNG.
func (m *Machine) Screenshot(ctx context.Context) ([]byte, error) {
	if m.tech.Confidential {
		return nil, &fault.Error{
			Kind: fault.Refused, Op: m.rec.Name, Err: errors.New("a confidential guest has no screen for its host"),
		}
	}
	conn, err := m.QMP(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	file := filepath.Join(m.dir.Path(rundir.ScreenDir), rundir.ScreenFile)
	_ = os.Remove(file) // of a command that was killed
	defer os.Remove(file)
	if err := (qmp.Screendump{Filename: file, Format: "png"}).Execute(ctx, conn); err != nil {
		err = m.said("screenshot", err)
		if e := fault.As(err); e != nil && e.Fix == "" {
			e.Fix = "the guest needs a screen: [display] in its spec"
		}
		return nil, err
	}
	return regular.ReadNoFollow(file, maxScreen) // QEMU could have put a link there
}
