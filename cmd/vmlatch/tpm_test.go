package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// backup is one of a TPM, with sums of its own; "" leaves those out.
func backup(t testing.TB, sums string, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if sums != "" {
		files = append(files, sumsFile, sums)
	}
	for i := 0; i+1 < len(files); i += 2 {
		err := w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1]))})
		if err == nil {
			_, err = w.Write([]byte(files[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadBackup(t *testing.T) {
	sum := func(name, text string) string { return fmt.Sprintf("%x  %s\n", sha256.Sum256([]byte(text)), name) }
	good := backup(t, sum("a", "state")+sum("b", "certificate"), "a", "state", "b", "certificate")
	files, err := readBackup(good)
	if err != nil || len(files) != 2 || string(files["b"]) != "certificate" {
		t.Fatalf("%q, %v", files, err)
	}
	for what, b := range map[string][]byte{
		"empty":            nil,
		"without sums":     backup(t, "", "a", "state"),
		"another file":     backup(t, sum("a", "state"), "a", "other"),
		"a file too many":  backup(t, sum("a", "state"), "a", "state", "b", "x"),
		"a file too few":   backup(t, sum("a", "state")+sum("b", "x"), "a", "state"),
		"nothing in it":    backup(t, "\n"),
		"text":             []byte("this is a text and no archive of anything that counts"),
		"a cut off header": good[:300],
		"a name twice":     backup(t, sum("a", "state"), "a", "x", "a", "state"),
		"many files":       backup(t, sum("a", ""), strings.Split("a,,b,,c,,d,,e,,f,,g,,h,,i,", ",")...),
	} {
		if files, err := readBackup(b); err == nil {
			t.Errorf("%s: %q", what, files)
		}
	}
	for n := 0; n < len(good)-1024-512; n += 64 { // what follows is padding
		if _, err := readBackup(good[:n]); err == nil {
			t.Errorf("%d of %d bytes are a backup", n, len(good))
		}
	}
}

func FuzzReadBackup(f *testing.F) {
	f.Add(backup(f, "x", "a", "state"))
	f.Fuzz(func(_ *testing.T, b []byte) { _, _ = readBackup(b) })
}
