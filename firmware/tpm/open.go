package tpm

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// Device is Linux's device of a TPM, whose resources the kernel manages.
const Device = "/dev/tpmrm0"

// Open opens a TPM: a device, or the socket of an emulated one (swtpm socket --server type=unixio).
func Open(name string) (*Conn, error) {
	info, err := os.Stat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Error{
			Doing: "open " + name, Cause: "there is no TPM", Err: fs.ErrNotExist,
			Fix: "switch it on in the firmware's setup, and load its driver (modprobe tpm_crb tpm_tis)",
		}
	case err != nil:
		return nil, denied(name, err)
	case info.Mode()&fs.ModeSocket != 0:
		c, err := net.Dial("unix", name)
		if err != nil {
			return nil, denied(name, err)
		}
		return New(c), nil
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, &Error{
			Doing: "open " + name, Cause: "it is not a TPM", Err: fmt.Errorf("%v", info.Mode()),
			Fix: "name a device such as " + Device + ", or the socket of an emulated TPM",
		}
	}
	f, err := openDevice(name)
	if err != nil {
		return nil, denied(name, err)
	}
	return New(f), nil
}

func denied(name string, err error) error {
	e := &Error{Doing: "open " + name, Cause: "it cannot be opened", Fix: fixGone, Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		e.Cause, e.Fix = "this user may not use the TPM",
			"become a member of its group (usermod -aG tss USER), or be root"
	case isBusy(err):
		e.Cause, e.Fix = "something else uses the TPM", "use the device with a resource manager, "+Device
	}
	return e
}
