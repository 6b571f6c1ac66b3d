package procfs

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"testing"
)

func TestStatus(t *testing.T) {
	got, err := Status("/proc/self")
	if err != nil {
		t.Fatal(err)
	}
	if got["Pid"] != strconv.Itoa(os.Getpid()) || got["Name"] == "" {
		t.Errorf("%v", got)
	}
	if _, err := Status("/proc/self/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
